"""Rates with intervals, paired tests, and the tidy table of a run's results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy

Verdict = Literal["refused", "complied", "unscored"]
# By prompt id, the verdicts of one judge on the answers under one attack.
VerdictsById = Mapping[str, Verdict]
# One sequence for each attack, over the same requests in the same order; None: the attack does not make this request.
VerdictGroups = Sequence[Sequence[Verdict | None]]
Array: TypeAlias = "numpy.ndarray[Any, Any]"
# Hits and what is scored, each [groups, requests]: see `hits_of`.
Side: TypeAlias = tuple["numpy.ndarray[Any, Any]", "numpy.ndarray[Any, Any]"]

CONFIDENCE = 0.95
RESAMPLES = 2000
# Draws of a permutation test.
FLIPS = 9999
# Where two sides disagree on fewer requests, a bootstrap has too few of them to draw from.
FEW = 10


@dataclass(frozen=True)
class Row:
    """One rate in the tidy table; `value`, `low`, `high`, `n` and `unscored` are those of `Rate`."""

    stage: str
    subject: str
    condition: str
    prompts: str
    attack: str
    defense: str
    judge: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int


@dataclass(frozen=True)
class Rate:
    """A fraction or a mean of `n` scored values with its 95% interval; `unscored` more could not be scored."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int


@dataclass(frozen=True)
class Difference:
    """One rate minus another, with its 95% interval; None if a group has no scored answer."""

    value: float | None
    low: float | None
    high: float | None


def row(found: Rate, **names: str) -> Row:
    """A rate as a row of the table."""
    return Row(value=found.value, low=found.low, high=found.high, n=found.n, unscored=found.unscored, **names)


def rate(verdicts: Sequence[Verdict], counted: Verdict) -> Rate:
    """The fraction of scored answers with the verdict `counted`, with a Wilson interval."""
    return share([None if verdict == "unscored" else verdict == counted for verdict in verdicts])


def share(outcomes: Sequence[bool | None]) -> Rate:
    """The fraction of outcomes that are true, with a Wilson interval (Wilson 1927); None: could not be scored."""
    scored = [outcome for outcome in outcomes if outcome is not None]
    unscored = len(outcomes) - len(scored)
    if not scored:
        return Rate(None, None, None, 0, unscored)
    return Rate(sum(scored) / len(scored), *wilson(sum(scored), len(scored)), len(scored), unscored)


def mean(values: Sequence[float | None], seed: int, bounds: tuple[float, float] | None = None) -> Rate:
    """The mean over prompts, with a percentile bootstrap interval; None: the prompt has no value.

    With `bounds`, the smallest and the largest possible value, the half-width of the interval of equal values is the
    upper Wilson limit for zero hits in n prompts, scaled to the range. Without, a single value has no interval.
    """
    import numpy

    scored = numpy.array([value for value in values if value is not None], dtype=float)
    n, unscored = len(scored), len(values) - len(scored)
    if not n:
        return Rate(None, None, None, 0, unscored)
    value = float(scored.mean())
    if bounds is not None and numpy.ptp(scored) == 0:
        smallest, largest = bounds
        half = (largest - smallest) * wilson(0, n)[1]
        return Rate(value, max(smallest, value - half), min(largest, value + half), n, unscored)
    if n < 2:
        return Rate(value, None, None, 1, unscored)
    low, high = percentile_interval(scored[resampled_indices(n, seed)].mean(axis=1))
    return Rate(value, min(low, value), max(high, value), n, unscored)


def mean_rate(groups: VerdictGroups, counted: Verdict, seed: int) -> Rate:
    """The mean over groups (attacks) of the fraction of `counted`.

    The interval is a percentile bootstrap over requests, because answers to one request under several attacks are not
    independent. If all verdicts agree, it is the Wilson interval for the number of requests.
    """
    hits, scored = hits_of(groups, counted)
    n, unscored = int(scored.sum()), sum(verdict == "unscored" for group in groups for verdict in group)
    if not scored.any(axis=1).all():
        return Rate(None, None, None, n, unscored)
    value = float(group_rates(hits, scored).mean())
    requests = int(scored.any(axis=0).sum())
    if value in (0.0, 1.0) or requests < 2:
        low, high = wilson(round(value * requests), requests)
    else:
        low, high = percentile_interval(resampled_means(hits, scored, resampled_indices(hits.shape[1], seed)))
    return Rate(value, min(low, value), max(high, value), n, unscored)


def rate_of_groups(groups: VerdictGroups, counted: Verdict, seed: int) -> Rate:
    """`mean_rate` of several groups; of one, whose requests are independent, `rate` with its Wilson interval."""
    if len(groups) == 1:
        return rate([verdict for verdict in groups[0] if verdict is not None], counted)
    return mean_rate(groups, counted, seed)


def paired_difference(one: VerdictGroups, other: VerdictGroups, counted: Verdict, seed: int) -> Difference:
    """The mean fraction of `counted` over the groups of `one` minus that over the groups of `other`.

    Groups pair in order, and all hold the same requests in the same order. A request counts in a group if both sides
    have scored it there. The interval is a percentile bootstrap that draws the same requests for both sides, or
    `limits_of_few` where they disagree on fewer than FEW requests. If the difference is the same on every request, the
    half-width is the upper Wilson limit for zero hits in the number of requests.

    Raises:
        ValueError: the groups do not pair, or differ in length.
    """
    import numpy

    sides = paired_hits(one, other, counted)
    if not sides[0][1].any(axis=1).all():
        return Difference(None, None, None)
    first, second = (float(group_rates(hits, scored).mean()) for hits, scored in sides)
    value = first - second
    drawn = resampled_indices(len(one[0]), seed)
    resampled = resampled_means(*sides[0], drawn) - resampled_means(*sides[1], drawn)
    if numpy.ptp(resampled) < 1e-12:
        half = wilson(0, int(sides[0][1].any(axis=0).sum()))[1]
        return Difference(value, max(-1.0, value - half), min(1.0, value + half))
    if disagreements([sides]) < FEW:
        return Difference(value, *limits_of_few([sides]))
    low, high = percentile_interval(resampled)
    return Difference(value, min(low, value), max(high, value))


def disagreements(pairs: Sequence[tuple[Side, Side]]) -> int:
    """The number of requests on which the two sides of any pair, from `paired_hits`, disagree."""
    import numpy

    return int(numpy.any([(hits != others).any(axis=0) for (hits, _), (others, _) in pairs], axis=0).sum())


def limits_of_few(pairs: Sequence[tuple[Side, Side]]) -> tuple[float, float]:
    """The 95% interval of a mean difference over pairs of sides, from `paired_hits`, that rarely disagree.

    The difference is the share of requests that only the first side counts minus the share that only the second does.
    Their Wilson limits are combined by Newcombe's method (1998, Statistics in Medicine 17, 873-890 and 2635-2650): the
    distances of each end add by squares. What the two shares have in common is little where both are small. In a mean
    over groups and pairs, each request counts as one answer, which is rather too wide than too narrow.
    """
    import numpy

    requests = int(numpy.any([scored.any(axis=0) for (_, scored), _ in pairs], axis=0).sum())
    gained, lost = (
        float(
            numpy.mean([group_rates((sign * (hits - others)).clip(0), scored) for (hits, scored), (others, _) in pairs])
        )
        for sign in (1, -1)
    )
    return newcombe(gained, lost, requests)


def newcombe(gained: float, lost: float, n: float) -> tuple[float, float]:
    """The 95% interval of `gained - lost`, two shares of the same n answers; source: `limits_of_few`."""
    (low, high), (low_lost, high_lost) = (wilson_limits(one, n, normal_quantile()) for one in (gained, lost))
    below, above = math.hypot(gained - low, high_lost - lost), math.hypot(high - gained, lost - low_lost)
    return max(-1.0, gained - lost - below), min(1.0, gained - lost + above)


def percentile_interval(samples: "Sequence[float] | Array") -> tuple[float, float]:
    """The 95% percentile interval of bootstrap samples."""
    import numpy

    low, high = numpy.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval (1927) for `hits` of n."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def wilson_limits(value: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval for a rate from n independent answers; neither hits nor n need be whole numbers."""
    square = quantile**2
    middle = (value + square / (2 * n)) / (1 + square / n)
    half = quantile / (1 + square / n) * math.sqrt(value * (1 - value) / n + square / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def normal_quantile() -> float:
    """Of the standard normal distribution, for a two-sided interval."""
    from scipy.stats import norm

    return float(norm.ppf((1 + CONFIDENCE) / 2))


def hits_of(groups: VerdictGroups, counted: Verdict) -> Side:
    """Float [groups, requests]: 1 where the verdict is `counted`, and 1 where the answer is scored."""
    import numpy

    hits = numpy.array([[verdict == counted for verdict in group] for group in groups], dtype=float)
    scored = numpy.array([[verdict not in (None, "unscored") for verdict in group] for group in groups], dtype=float)
    return hits, scored


def paired_hits(one: VerdictGroups, other: VerdictGroups, counted: Verdict) -> tuple[Side, Side]:
    """`hits_of` each side, without the answers that only one side has scored.

    Raises:
        ValueError: the groups do not pair, or differ in length.
    """
    if len(one) != len(other) or len({len(group) for group in (*one, *other)}) != 1:
        raise ValueError("Groups that are compared come in pairs, and all must hold the same requests.")
    (hits, scored), (other_hits, other_scored) = hits_of(one, counted), hits_of(other, counted)
    both = scored * other_scored
    return (hits * both, both), (other_hits * both, both)


def group_rates(hits: Array, scored: Array) -> Array:
    """The rate of each group, from `hits_of`: [groups]."""
    return hits.sum(axis=1) / scored.sum(axis=1)


def resampled_indices(n: int, seed: int) -> Array:
    """The indices of each bootstrap sample: [resamples, n]."""
    import numpy

    return numpy.random.default_rng(seed).integers(0, n, (RESAMPLES, n))


def resampled_means(hits: Array, scored: Array, drawn: Array) -> Array:
    """The mean rate over the groups in each bootstrap sample: [resamples]."""
    import numpy

    counts = scored[:, drawn].sum(axis=2)
    # A group without a scored answer in a sample keeps its overall rate.
    rates = hits[:, drawn].sum(axis=2) / counts.clip(min=1)
    return numpy.where(counts > 0, rates, group_rates(hits, scored)[:, None]).mean(axis=0)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value of McNemar's test (1947) on paired outcomes."""
    gained = sum(one and not other for one, other in zip(first, second, strict=True))
    lost = sum(other and not one for one, other in zip(first, second, strict=True))
    return flips_p(gained, lost)


def flips_p(gained: int, lost: int) -> float:
    """`mcnemar` from the number of outcomes that only the first and only the second has."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sign_flip(differences: Sequence[float], seed: int) -> float:
    """The two-sided p-value of a paired permutation test (Fisher 1935): the mean difference against random signs.

    Each difference is one request's, so answers to it under several attacks may depend on each other. The p-value is
    estimated from FLIPS draws, of which the observed signs are one (Phipson and Smyth 2010).
    """
    import numpy

    values = numpy.array([one for one in differences if one], dtype=float)
    if not len(values):
        return 1.0
    generator = numpy.random.default_rng(seed)
    observed = abs(values.sum()) - 1e-12
    drawn = generator.choice((-1.0, 1.0), (FLIPS, len(values))) @ values
    return float((1 + (abs(drawn) >= observed).sum()) / (1 + FLIPS))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's method (1979), in the given order; controls the family-wise error rate."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def by_request(ids: Sequence[str], verdicts: Sequence[Verdict | None]) -> VerdictsById:
    """The verdicts by request id, without requests that were not made."""
    return {name: verdict for name, verdict in zip(ids, verdicts, strict=True) if verdict is not None}


@dataclass(frozen=True)
class Paired:
    """Two sets of verdicts on the prompts that both score.

    `first` and `second` are the rates of the counted verdict, `difference` is second minus first. `gained` are the
    ids of prompts with this verdict only in the second set, `lost` only in the first. `p_value` is McNemar's, exact
    and two-sided. The last four count the excluded prompts: unscored in a set, or missing from the other set.
    """

    first: Rate
    second: Rate
    difference: Difference
    p_value: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    unscored_first: int
    unscored_second: int
    only_first: int
    only_second: int


def compare_verdicts(first: VerdictsById, second: VerdictsById, counted: Verdict = "complied", seed: int = 0) -> Paired:
    """Compare two sets of verdicts, prompt by prompt; a prompt that is unscored in either is excluded from both."""
    shared = [prompt for prompt in first if prompt in second]
    scored = [prompt for prompt in shared if "unscored" not in (first[prompt], second[prompt])]
    before, after = [first[prompt] for prompt in scored], [second[prompt] for prompt in scored]
    hits, hits_after = [verdict == counted for verdict in before], [verdict == counted for verdict in after]
    pairs = list(zip(scored, hits, hits_after, strict=True))
    return Paired(
        first=rate(before, counted),
        second=rate(after, counted),
        difference=paired_difference([after], [before], counted, seed),
        p_value=mcnemar(hits, hits_after),
        gained=tuple(prompt for prompt, one, other in pairs if other and not one),
        lost=tuple(prompt for prompt, one, other in pairs if one and not other),
        unscored_first=sum(first[prompt] == "unscored" for prompt in shared),
        unscored_second=sum(second[prompt] == "unscored" for prompt in shared),
        only_first=len(first) - len(shared),
        only_second=len(second) - len(shared),
    )
