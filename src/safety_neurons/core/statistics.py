"""Two evaluations of the same prompts side by side: what differs, by how much, and whether it may be chance.

The tidy table of results: one row a number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy
from scipy.stats import binomtest

Verdict = Literal["refused", "complied", "unscored"]
CONFIDENCE = 0.95
RESAMPLES = 2000
Array = numpy.ndarray[Any, Any]


@dataclass(frozen=True)
class Row:
    """One rate. `n` answers were judged, `unscored` more could not be; `value` is None where none could."""

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
    """A share, or another mean over prompts, with its 95% interval. "Could not judge" is counted apart."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int


def rate(verdicts: Sequence[Verdict], counted: Verdict) -> Rate:
    """The share of `counted` among the answers that could be judged, with Wilson's interval."""
    return share([None if verdict == "unscored" else verdict == counted for verdict in verdicts])


def share(outcomes: Sequence[bool | None]) -> Rate:
    """The share of what is true, with Wilson's interval (Wilson 1927); None is what could not be judged."""
    judged = [outcome for outcome in outcomes if outcome is not None]
    unscored = len(outcomes) - len(judged)
    if not judged:
        return Rate(None, None, None, 0, unscored)
    hits = sum(judged)
    interval = binomtest(hits, len(judged)).proportion_ci(CONFIDENCE, method="wilson")
    return Rate(hits / len(judged), float(interval.low), float(interval.high), len(judged), unscored)


def mean(values: Sequence[float | None], seed: int, bounds: tuple[float, float] | None = None) -> Rate:
    """The mean of a number for each prompt, None where a prompt has none, with a percentile bootstrap over prompts.

    `bounds` are the least and the greatest value that there can be. With them the interval of values that are all the
    same is as wide to either side as Wilson's of no hit in as many prompts; without them one value has no interval.
    """
    known = numpy.array([value for value in values if value is not None], dtype=float)
    unscored = len(values) - len(known)
    if not len(known):
        return Rate(None, None, None, 0, unscored)
    value = float(known.mean())
    if bounds is not None and numpy.ptp(known) == 0:
        least, greatest = bounds
        half = (greatest - least) * float(binomtest(0, len(known)).proportion_ci(CONFIDENCE, method="wilson").high)
        return Rate(value, max(least, value - half), min(greatest, value + half), len(known), unscored)
    if len(known) < 2:
        return Rate(value, None, None, 1, unscored)
    low, high = _interval(known[_drawn(len(known), seed)].mean(axis=1))
    return Rate(value, min(low, value), max(high, value), len(known), unscored)


@dataclass(frozen=True)
class Difference:
    """One share minus another, with its 95% interval; None where a group has no answer that could be judged."""

    value: float | None
    low: float | None
    high: float | None


Groups = Sequence[Sequence[Verdict | None]]


def mean_rate(groups: Groups, counted: Verdict, seed: int) -> Rate:
    """The mean over groups (attacks) of the share of `counted`; the groups hold the same requests in the same order.

    None stands for a request that was not made in a group. The interval is a percentile bootstrap over requests, so
    that one request's fate under several attacks is not mistaken for several independent ones. Where all verdicts
    agree, resampling says nothing: then it is Wilson's for as many requests.
    """
    hits, scored = _counted(groups, counted)
    n, unscored = int(scored.sum()), sum(verdict == "unscored" for group in groups for verdict in group)
    if not scored.any(axis=1).all():
        return Rate(None, None, None, n, unscored)
    mean = float((hits.sum(axis=1) / scored.sum(axis=1)).mean())
    requests = int(scored.any(axis=0).sum())
    if mean in (0.0, 1.0) or requests < 2:
        interval = binomtest(round(mean * requests), requests).proportion_ci(CONFIDENCE, method="wilson")
        return Rate(mean, min(float(interval.low), mean), max(float(interval.high), mean), n, unscored)
    low, high = _interval(_resampled(hits, scored, _drawn(hits.shape[1], seed)))
    return Rate(mean, min(low, mean), max(high, mean), n, unscored)


def paired_difference(one: Groups, other: Groups, counted: Verdict, seed: int) -> Difference:
    """The mean share of `counted` over the groups of `one` minus that over those of `other`.

    All groups hold the same requests in the same order, None where a request was not made. The interval is a
    percentile bootstrap that draws the same requests for both. Where it does not vary, because the two differ by the
    same on every request, it is as wide to either side as Wilson's interval of no hit in as many requests.

    Raises:
        ValueError: the groups do not hold equally many requests.
    """
    if len({len(group) for group in (*one, *other)}) != 1:
        raise ValueError("paired groups hold the same requests")
    sides = [_counted(groups, counted) for groups in (one, other)]
    if not all(scored.any(axis=1).all() for _, scored in sides):
        return Difference(None, None, None)
    first, second = (float((hits.sum(axis=1) / scored.sum(axis=1)).mean()) for hits, scored in sides)
    value = first - second
    drawn = _drawn(len(one[0]), seed)
    resampled = _resampled(*sides[0], drawn) - _resampled(*sides[1], drawn)
    if numpy.ptp(resampled) < 1e-12:
        requests = int((sides[0][1].any(axis=0) | sides[1][1].any(axis=0)).sum())
        half = float(binomtest(0, requests).proportion_ci(CONFIDENCE, method="wilson").high)
        return Difference(value, max(-1.0, value - half), min(1.0, value + half))
    low, high = _interval(resampled)
    return Difference(value, min(low, value), max(high, value))


def _counted(groups: Groups, counted: Verdict) -> tuple[Array, Array]:
    """Float [groups, requests]: 1 where the verdict is `counted`, and 1 where there is one at all."""
    hits = numpy.array([[verdict == counted for verdict in group] for group in groups], dtype=float)
    scored = numpy.array([[verdict not in (None, "unscored") for verdict in group] for group in groups], dtype=float)
    return hits, scored


def _drawn(requests: int, seed: int) -> Array:
    """Which requests make each resample: [resamples, requests]."""
    return numpy.random.default_rng(seed).integers(0, requests, (RESAMPLES, requests))


def _resampled(hits: Array, scored: Array, drawn: Array) -> Array:
    """The mean share over the groups in each resample: [resamples]."""
    shares = hits.sum(axis=1) / scored.sum(axis=1)
    counts = scored[:, drawn].sum(axis=2)
    # A resample in which a group has no judged answer says nothing of that group: the group keeps its own share.
    found: Array = numpy.where(counts > 0, hits[:, drawn].sum(axis=2) / counts.clip(min=1), shares[:, None])
    return found.mean(axis=0)


def _interval(resampled: Array) -> tuple[float, float]:
    low, high = numpy.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def row(found: Rate, **names: str) -> Row:
    """A rate as a row of the table."""
    return Row(value=found.value, low=found.low, high=found.high, n=found.n, unscored=found.unscored, **names)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value of McNemar's test (1947) on paired outcomes."""
    gained = sum(one and not other for one, other in zip(first, second, strict=True))
    lost = sum(other and not one for one, other in zip(first, second, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


# The verdicts of one attack and one judge, by prompt id.
Verdicts = Mapping[str, Verdict]


def by_request(ids: Sequence[str], verdicts: Sequence[Verdict | None]) -> Verdicts:
    """Without the requests that were not made, whose verdict is None."""
    return {name: verdict for name, verdict in zip(ids, verdicts, strict=True) if verdict is not None}


@dataclass(frozen=True)
class Paired:
    """Two sets of verdicts on the prompts that both have a verdict on.

    `first` and `second` are the shares of the counted verdict, `difference` is second minus first. `gained` are the
    prompts that only the second has it on, `lost` those that only the first has. `p_value` is McNemar's, exact and
    two-sided. The counts are of prompts that were left out: unscored on a side, or only there.
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


def compare_verdicts(first: Verdicts, second: Verdicts, counted: Verdict = "complied", seed: int = 0) -> Paired:
    """Compare two sets of verdicts, prompt by prompt.

    A prompt that is unscored on either side says nothing of the difference, and is left out of both.
    """
    shared = [prompt for prompt in first if prompt in second]
    judged = [prompt for prompt in shared if "unscored" not in (first[prompt], second[prompt])]
    before, after = [first[prompt] for prompt in judged], [second[prompt] for prompt in judged]
    hits, hits_after = [one == counted for one in before], [one == counted for one in after]
    flips = list(zip(judged, hits, hits_after, strict=True))
    return Paired(
        first=rate(before, counted),
        second=rate(after, counted),
        difference=paired_difference([after], [before], counted, seed),
        p_value=mcnemar(hits, hits_after),
        gained=tuple(prompt for prompt, one, other in flips if other and not one),
        lost=tuple(prompt for prompt, one, other in flips if one and not other),
        unscored_first=sum(first[prompt] == "unscored" for prompt in shared),
        unscored_second=sum(second[prompt] == "unscored" for prompt in shared),
        only_first=len(first) - len(shared),
        only_second=len(second) - len(shared),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in their order: below 5% with at most 5% for any false one."""
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted
