"""The tidy table of results: one row a number."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy.stats import binomtest, bootstrap

from safety_neurons.judges import Verdict

CONFIDENCE = 0.95


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
    mistaken for several independent ones.
    """
    values = numpy.array(
        [[numpy.nan if verdict == "unscored" else float(verdict == counted) for verdict in group] for group in groups]
    )
    scored = ~numpy.isnan(values)
    n, unscored = int(scored.sum()), int((~scored).sum())
    if not scored.any(axis=1).all():
        return Rate(None, None, None, n, unscored)

    def statistic(requests: numpy.ndarray, axis: int) -> numpy.ndarray:
        sample = numpy.moveaxis(values[:, requests.astype(int)], 0, -1)
        return numpy.nanmean(numpy.nanmean(sample, axis=-2 if axis == -1 else axis), axis=-1)

    requests = numpy.arange(values.shape[1])
    mean = float(numpy.nanmean(values, axis=1).mean())
    if len(requests) < 2 or numpy.nanmin(values) == numpy.nanmax(values):
        # Nothing varies, so resampling says nothing: the interval of a single group of that size is the honest one.
        first = rate([verdict for group in groups for verdict in group][: len(requests)], counted)
        return Rate(mean, first.low, first.high, n, unscored)
    with numpy.errstate(all="ignore"):
        interval = bootstrap(
            (requests,), statistic, vectorized=True, method="percentile", n_resamples=2000, rng=seed
        ).confidence_interval
    return Rate(mean, float(interval.low), float(interval.high), n, unscored)


def row(found: Rate, **names: str) -> Row:
    """A rate as a row of the table."""
    return Row(value=found.value, low=found.low, high=found.high, n=found.n, unscored=found.unscored, **names)
