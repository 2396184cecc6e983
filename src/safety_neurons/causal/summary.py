"""Outcomes in numbers: shares of all prompts with intervals, and what a push moved beside what random neurons moved."""

from collections.abc import Sequence
from typing import Any

import numpy
from scipy.stats import binomtest, bootstrap

from safety_neurons.causal.laboratory import Outcome
from safety_neurons.evaluate.rows import CONFIDENCE, RESAMPLES
from safety_neurons.judges import Verdict

VERDICTS: dict[str, Verdict] = {"refused": "refused", "answered": "complied", "broken": "unscored"}


def described(outcome: Outcome) -> dict[str, Any]:
    """Shares of all prompts that are refused, answered and broken, each with Wilson's interval; means of the others."""
    found: dict[str, Any] = {"n": len(outcome.verdicts)}
    for name, verdict in VERDICTS.items():
        found[name] = share(outcome.are(verdict))
    found["divergence"] = mean(outcome.divergence)
    found["surprise"] = mean(outcome.surprise)
    return found


def share(hits: Sequence[bool]) -> dict[str, float]:
    """A share with its 95% interval (Wilson 1927)."""
    interval = binomtest(sum(hits), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    return {"value": sum(hits) / len(hits), "low": float(interval.low), "high": float(interval.high)}


def mean(values: Sequence[float | None]) -> dict[str, float | None]:
    """A mean with its 95% bootstrap interval over prompts; without one where the numbers do not differ."""
    known = numpy.array([value for value in values if value is not None])
    if not len(known):
        return {"value": None, "low": None, "high": None}
    value = float(known.mean())
    if len(known) < 2 or float(known.std()) == 0:
        return {"value": value, "low": None, "high": None}
    interval = bootstrap(
        (known,),
        numpy.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=numpy.random.default_rng(0),
    ).confidence_interval
    return {"value": value, "low": float(interval.low), "high": float(interval.high)}


def moved(before: Outcome, after: Outcome, verdict: Verdict) -> list[bool]:
    """Prompt by prompt: not this verdict without the push, this verdict with it."""
    return [not one and other for one, other in zip(before.are(verdict), after.are(verdict), strict=True)]
