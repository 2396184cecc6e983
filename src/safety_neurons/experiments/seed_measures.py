"""The measures of `experiment seeds`: rates before and after each training, their mean, spread and differences."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from safety_neurons.core.statistics import Verdict, rate_of_groups
from safety_neurons.core.trainings import crossed_difference, crossed_rate
from safety_neurons.evaluation.grid import HARMFUL
from safety_neurons.evaluation.summary import counted_in
from safety_neurons.report.summary import MEAN

# The verdicts on the answers of one model, by set of prompts and attack.
Verdicts = Mapping[tuple[str, str], Sequence[Verdict | None]]


def measures_of(
    base: Verdicts,
    trainings: Sequence[Verdicts],
    random: Sequence[Verdicts] | None,
    left_out: Collection[str],
    seed: int,
) -> list[dict[str, Any]]:
    """Each attack, the mean over attacks, and each set of safe prompts.

    Args:
        random: trainings of random neurons, paired with `trainings`.
        left_out: attacks that could not be run on all models.
    """
    lines = {(prompts, attack): [(prompts, attack)] for prompts, attack in base if prompts != HARMFUL}
    attacked = {line: [line] for line in base if line[0] == HARMFUL and line[1] not in left_out}
    if len(attacked) > 1:
        lines = {(HARMFUL, MEAN): [*attacked]} | lines
    return [_measure(line, parts, base, trainings, random, seed) for line, parts in (attacked | lines).items()]


def _measure(
    line: tuple[str, str],
    parts: Sequence[tuple[str, str]],
    base: Verdicts,
    trainings: Sequence[Verdicts],
    random: Sequence[Verdicts] | None,
    seed: int,
) -> dict[str, Any]:
    counted = counted_in(line[0])

    def groups(verdicts: Verdicts) -> list[Sequence[Verdict | None]]:
        return [verdicts[part] for part in parts]

    before, after = groups(base), [groups(one) for one in trainings]
    each = [rate_of_groups(one, counted, seed) for one in after]
    known = [one.value for one in each if one.value is not None]
    difference = None if random is None else crossed_difference(after, [groups(one) for one in random], counted, seed)
    return {
        "prompts": line[0],
        "attack": line[1],
        "before": asdict(rate_of_groups(before, counted, seed)),
        "trainings": [asdict(one) for one in each],
        "mean": asdict(crossed_rate(after, counted, seed)),
        "spread": statistics.stdev(known) if len(known) == len(each) > 1 else None,
        "against_before": asdict(crossed_difference(after, [before] * len(after), counted, seed)),
        "against_random": None if difference is None else asdict(difference),
    }
