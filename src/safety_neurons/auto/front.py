"""The Pareto front of trials, and which of it to take."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy

from safety_neurons.errors import SafetyNeuronsError


@dataclass(frozen=True)
class Objectives:
    """What tuning is judged by, all the lower the better: two rates, and nats per token."""

    attack_success: float
    over_refusal: float
    divergence: float


@dataclass(frozen=True)
class Trial:
    """One tuning: its settings by their path ("tune.learning_rate"), and what came of it."""

    number: int
    settings: dict[str, Any]
    objectives: Objectives


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats: one that is nowhere worse and somewhere better."""
    return [trial for trial in trials if not any(_beats(other, trial) for other in trials)]


def _beats(one: Trial, other: Trial) -> bool:
    pairs = list(zip(astuple(one.objectives), astuple(other.objectives), strict=True))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


def choose(trials: Sequence[Trial], max_over_refusal: float | None = None) -> Trial:
    """The trial with the fewest successful attacks within the limit of over-refusal, or the front's knee without one.

    The knee is the trial of the front that is nearest to the ideal, each objective measured between its best and its
    worst value on the front.

    Raises:
        SafetyNeuronsError: no trial keeps to the limit.
    """
    if max_over_refusal is not None:
        within = [trial for trial in trials if trial.objectives.over_refusal <= max_over_refusal]
        if not within:
            least = min(trial.objectives.over_refusal for trial in trials)
            raise SafetyNeuronsError(
                f"No trial keeps over-refusal at {max_over_refusal:.1%} or below; the least is {least:.1%}. Allow more "
                "(--max-over-refusal), or try more settings (--trials)."
            )
        return min(within, key=lambda trial: astuple(trial.objectives))
    best = front(trials)
    values = numpy.array([astuple(trial.objectives) for trial in best])
    low, span = values.min(axis=0), numpy.ptp(values, axis=0)
    distances = numpy.linalg.norm((values - low) / numpy.where(span > 0, span, 1.0), axis=1)
    return best[int(distances.argmin())]
