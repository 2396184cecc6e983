"""What the measures of a defense find, as they are kept and shown."""

from typing import Annotated, Any

from safety_neurons.core.fields import Change, Count, Mean, Measured, Number, Positive, Section, one_of


class Timing(Section):
    """Latency with a defense, relative to none."""

    ratio: Positive
    low: Positive | None = None
    high: Positive | None = None


class Ordinary(Section):
    """Answers to ordinary requests under a defense."""

    words: Mean
    looping: Measured
    blocked: Measured
    kl_divergence: Mean | None
    perplexity: Mean | None


class TaskMetric(Section):
    value: Number
    stderr: Number | None


class TaskMetrics(Section):
    metrics: dict[str, TaskMetric]


class Tasks(Section):
    """Tasks of the LM Evaluation Harness under a defense, by name."""

    results: dict[str, TaskMetrics]


class MathProblems(Section):
    """Problems of GSM8K under a defense; `difference` is from no defense, on the same problems."""

    exact_match: Measured
    cut_off: Measured
    difference: Change | None


class PreferenceCounts(Section):
    rate: Measured
    wins: Count
    ties: Count
    losses: Count
    swayed: Count
    unscored: Count


class PreferenceGrades(Section):
    mean: Mean


class Preferences(Section):
    """Answers to open questions under a defense, by the preference judge."""

    win_rate: PreferenceCounts
    grades: PreferenceGrades


# What one of the measures found.
MeasuredDefense = Annotated[dict[str, Any], one_of(Timing, Ordinary, Tasks, MathProblems, Preferences)]
