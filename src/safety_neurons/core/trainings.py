"""Rates of several trainings on the same requests, with intervals that hold both for other requests and trainings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from safety_neurons.core.statistics import (
    CONFIDENCE,
    FEW,
    Array,
    Difference,
    Rate,
    Side,
    Verdict,
    VerdictGroups,
    disagreements,
    group_rates,
    hits_of,
    limits_of_few,
    paired_hits,
    resampled_indices,
    resampled_means,
    wilson,
    wilson_limits,
)

# Below this a variance is rounding.
_NOTHING = 1e-15


@dataclass(frozen=True)
class _Sampled:
    """A statistic of each training: [trainings], and in each bootstrap sample of requests: [trainings, samples]."""

    observed: Array
    resampled: Array
    requests: int

    @property
    def value(self) -> float:
        return float(self.observed.mean())

    def error(self) -> tuple[float, float]:
        """The variance of the mean over trainings, and its degrees of freedom; see `crossed_rate`."""
        trainings = len(self.observed)
        by_requests = float(self.resampled.mean(axis=0).var(ddof=1))
        by_trainings = float(self.observed.var(ddof=1)) / trainings if trainings > 1 else 0.0
        variance = by_requests + by_trainings
        if variance < _NOTHING:
            return 0.0, math.inf
        spent = by_requests**2 / max(1, self.requests - 1) + by_trainings**2 / max(1, trainings - 1)
        return variance, variance**2 / spent


def crossed_rate(trainings: Sequence[VerdictGroups], counted: Verdict, seed: int) -> Rate:
    """The mean over trainings of the mean rate of `counted` over groups (attacks).

    `trainings` holds one `VerdictGroups` for each training, all of the same requests in the same order. The 95%
    interval is for other requests *and* other trainings, which are crossed: every training answers every request.

    It is a crossed bootstrap with a variance for each side. Requests: R of the R requests are drawn with replacement,
    the same ones for all trainings and attacks; V_R is the variance of the mean over trainings in these samples.
    Trainings: V_S = s^2 / S, with s^2 the variance (S - 1) between the S trainings' means. This is the closed form of
    drawing S trainings with replacement, times S / (S - 1): the plain bootstrap is too narrow by this factor, which
    matters where S is small. Both hold the chance of single answers, so V_R + V_S counts it twice, and the interval
    is rather too wide than too narrow (drawing both at once would count it three times: Owen 2007, The pigeonhole
    bootstrap). The sum V has the degrees of freedom of Satterthwaite (1946), from R - 1 and S - 1. The interval is
    Wilson's for a rate of p (1 - p) / V independent answers, with the quantile of Student's t; it stays between 0 and
    1. Where all verdicts agree, it is Wilson's for the number of requests.

    With one training nothing is known of others: the interval is for other requests alone.

    Raises:
        ValueError: the trainings hold different numbers of groups or requests, or there is none.
    """
    _check(trainings)
    sides = [hits_of(groups, counted) for groups in trainings]
    n = int(sum(scored.sum() for _, scored in sides))
    unscored = sum(verdict == "unscored" for groups in trainings for group in groups for verdict in group)
    found = _sampled(sides, seed)
    if found is None:
        return Rate(None, None, None, n, unscored)
    value, (variance, freedom) = found.value, found.error()
    if variance == 0.0 or not 0 < value < 1:
        low, high = wilson(round(value * found.requests), found.requests)
    else:
        low, high = wilson_limits(value, value * (1 - value) / variance, _quantile(freedom))
    return Rate(value, min(low, value), max(high, value), n, unscored)


def crossed_difference(
    ones: Sequence[VerdictGroups], others: Sequence[VerdictGroups], counted: Verdict, seed: int
) -> Difference:
    """The mean rate of `counted` of some trainings minus that of others, paired by training and by request.

    As in `paired_difference`, a request counts in a group of a pair of trainings if both have scored it there. The
    variance is that of `crossed_rate`, of the differences of the pairs: the same requests are drawn for both. The
    interval is symmetric, with the quantile of Student's t. If the difference is the same on every request, the
    half-width is the upper Wilson limit for zero hits in the number of requests. Where the pairs disagree on fewer than
    FEW requests, each end is that of `limits_of_few` if that is further out: a variance of so few says little.

    Raises:
        ValueError: the trainings do not pair, or hold different numbers of requests.
    """
    if len(ones) != len(others):
        raise ValueError("Trainings that are compared come in pairs.")
    _check([*ones, *others])
    pairs = [paired_hits(one, other, counted) for one, other in zip(ones, others, strict=True)]
    mine, theirs = (_sampled(side, seed) for side in zip(*pairs, strict=True))
    if mine is None or theirs is None:
        return Difference(None, None, None)
    found = _Sampled(mine.observed - theirs.observed, mine.resampled - theirs.resampled, mine.requests)
    variance, freedom = found.error()
    half = wilson(0, found.requests)[1] if variance == 0.0 else _quantile(freedom) * math.sqrt(variance)
    low, high = max(-1.0, found.value - half), min(1.0, found.value + half)
    if 0 < disagreements(pairs) < FEW:
        widest = limits_of_few(pairs)
        low, high = min(low, widest[0]), max(high, widest[1])
    return Difference(found.value, low, high)


def _check(trainings: Sequence[VerdictGroups]) -> None:
    shapes = {(len(groups), *{len(group) for group in groups}) for groups in trainings}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError("All trainings must hold the same requests, in as many groups.")


def _sampled(sides: Sequence[Side], seed: int) -> _Sampled | None:
    """The statistic of trainings, each as `hits_of` it; None if a group of one has no scored answer."""
    import numpy

    if not all(scored.any(axis=1).all() for _, scored in sides):
        return None
    drawn = resampled_indices(sides[0][0].shape[1], seed)
    return _Sampled(
        numpy.array([group_rates(*side).mean() for side in sides]),
        numpy.array([resampled_means(*side, drawn) for side in sides]),
        int(numpy.any([scored.any(axis=0) for _, scored in sides], axis=0).sum()),
    )


def _quantile(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))
