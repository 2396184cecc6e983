"""The tidy table of results: one row a number."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy.stats import binomtest

from safety_neurons.judges import Verdict

CONFIDENCE = 0.95
RESAMPLES = 2000


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
    """A share with its 95% interval. "Could not judge" is neither side: it is counted apart."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int


def rate(verdicts: Sequence[Verdict], counted: Verdict) -> Rate:
    """The share of `counted` among the answers that could be judged, with Wilson's interval (Wilson 1927)."""
    judged: list[Verdict] = [verdict for verdict in verdicts if verdict != "unscored"]
    unscored = len(verdicts) - len(judged)
    if not judged:
        return Rate(None, None, None, 0, unscored)
    hits = judged.count(counted)
    interval = binomtest(hits, len(judged)).proportion_ci(CONFIDENCE, method="wilson")
    return Rate(hits / len(judged), float(interval.low), float(interval.high), len(judged), unscored)


def mean_rate(groups: Sequence[Sequence[Verdict]], counted: Verdict, seed: int) -> Rate:
    """The mean over groups (attacks) of the share of `counted`; the groups hold the same requests in the same order.

    The interval is a percentile bootstrap over requests, so that one request's fate under several attacks is not
    mistaken for several independent ones. Where all verdicts agree, resampling says nothing: then it is Wilson's
    for as many requests.
    """
    hits = numpy.array([[verdict == counted for verdict in group] for group in groups], dtype=float)
    scored = numpy.array([[verdict != "unscored" for verdict in group] for group in groups], dtype=float)
    n, unscored = int(scored.sum()), int((1 - scored).sum())
    if not scored.any(axis=1).all():
        return Rate(None, None, None, n, unscored)
    shares = hits.sum(axis=1) / scored.sum(axis=1)
    mean = float(shares.mean())
    requests = int(scored.any(axis=0).sum())
    if mean in (0.0, 1.0) or requests < 2:
        interval = binomtest(round(mean * requests), requests).proportion_ci(CONFIDENCE, method="wilson")
        return Rate(mean, min(float(interval.low), mean), max(float(interval.high), mean), n, unscored)
    drawn = numpy.random.default_rng(seed).integers(0, hits.shape[1], (RESAMPLES, hits.shape[1]))
    counts = scored[:, drawn].sum(axis=2)
    # A resample in which a group has no judged answer says nothing of that group: the group keeps its own share.
    resampled = numpy.where(counts > 0, hits[:, drawn].sum(axis=2) / counts.clip(min=1), shares[:, None])
    low, high = numpy.quantile(resampled.mean(axis=0), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Rate(mean, min(float(low), mean), max(float(high), mean), n, unscored)


def row(found: Rate, **names: str) -> Row:
    """A rate as a row of the table."""
    return Row(value=found.value, low=found.low, high=found.high, n=found.n, unscored=found.unscored, **names)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value of McNemar's test (1947) on paired outcomes."""
    gained = sum(one and not other for one, other in zip(first, second, strict=True))
    lost = sum(other and not one for one, other in zip(first, second, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
