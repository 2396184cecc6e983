"""`find`: the safety neurons of a model, selected by a score on harmful and benign prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from scipy.stats import false_discovery_control, ttest_ind_from_stats
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import BATCH_SIZE
from safety_neurons.neurons import scores
from safety_neurons.neurons.capture import ActivationStatistics
from safety_neurons.neurons.config import FindConfig
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, Provenance, sorted_indices
from safety_neurons.neurons.read import (
    BothSides,
    check_reading,
    directions,
    gather,
    measure_both,
    read_both,
    write_norms,
)
from safety_neurons.neurons.scores import NeuronValues, Score, Tokens


def top_percent(scores: Sequence[Tensor], percent: float, scope: str, layers: Sequence[int]) -> list[Tensor]:
    """Masks of the neurons with the highest scores per hook point, whose layers are `layers`.

    Negative scores are never selected; ties go to the lower index.
    """
    FindConfig.checked({"percent": percent, "scope": scope})
    masks: list[Tensor] = [torch.empty(0)] * len(scores)
    for group in dict.fromkeys(layers) if scope == "layer" else [None]:
        members = [number for number, layer in enumerate(layers) if group is None or layer == group]
        flat = _top(torch.cat([scores[number] for number in members]), percent)
        for number, mask in zip(members, flat.split([len(scores[number]) for number in members]), strict=True):
            masks[number] = mask
    return masks


def _top(scores: Tensor, percent: float) -> Tensor:
    count = max(1, round(len(scores) * percent / 100))
    order = scores.sort(descending=True, stable=True).indices[:count]
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[order] = True
    return mask & (scores >= 0)


def select(
    harmful: Sequence[Tensor],
    benign: Sequence[Tensor],
    percent: float,
    scope: str,
    contrastive: bool,
    layers: Sequence[int],
    selection: str = "difference",
) -> tuple[list[Tensor], list[Tensor]]:
    """Masks of the rejection and the conformity neurons, per hook point.

    For scores that rank each side by itself: top-k on harmful minus top-k on benign prompts, and vice versa (the paper,
    section 3.1). For contrastive scores: one top-k over both sides. With the selection "rejection": the rejection
    neurons of these. With "none": the top-k on harmful prompts alone. Neither has conformity neurons.
    """
    FindConfig.checked({"percent": percent, "scope": scope, "selection": selection})
    if selection == "none":
        rejection = top_percent(harmful, percent, scope, layers)
        conformity = [torch.zeros_like(mask) for mask in rejection]
    elif contrastive:
        chosen = top_percent(
            [torch.maximum(*pair) for pair in zip(harmful, benign, strict=True)], percent, scope, layers
        )
        rejection = [mask & (side >= 0) for mask, side in zip(chosen, harmful, strict=True)]
        conformity = [mask & (side >= 0) for mask, side in zip(chosen, benign, strict=True)]
    else:
        top_harmful, top_benign = (top_percent(side, percent, scope, layers) for side in (harmful, benign))
        rejection = [own & ~other for own, other in zip(top_harmful, top_benign, strict=True)]
        conformity = [own & ~other for own, other in zip(top_benign, top_harmful, strict=True)]
    if selection == "rejection":
        conformity = [torch.zeros_like(mask) for mask in conformity]
    return rejection, conformity


FALSE_DISCOVERY_RATE = 0.05
# The longest response, where responses count.
RESPONSE_TOKENS = 32


def significant(harmful: ActivationStatistics, benign: ActivationStatistics) -> list[Tensor]:
    """Masks of the neurons whose mean activations differ: bool [neurons] per hook point.

    Welch's t-test (1947) with Benjamini and Hochberg's control (1995) of the false discovery rate over all neurons of
    the model. The test assumes independent tokens, so it is meant for one token per prompt. Neurons with fewer than two
    tokens on a side, or without variance, are not significant.
    """
    sides = [
        (
            torch.cat(side.mean).double().numpy(),
            torch.cat(side.variance).double().numpy(),
            torch.cat(side.count).double().numpy(),
        )
        for side in (harmful, benign)
    ]
    (_, first, first_count), (_, second, second_count) = sides
    testable = (first_count > 1) & (second_count > 1) & (first + second > 0)
    values = numpy.ones(len(testable))
    moments = [
        (mean[testable], numpy.sqrt((variance * count)[testable] / (count[testable] - 1)), count[testable])
        for mean, variance, count in sides
    ]
    if testable.any():
        values[testable] = ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue
        values = false_discovery_control(values)
    found = torch.from_numpy(values <= FALSE_DISCOVERY_RATE)
    return list(found.split([len(mean) for mean in harmful.mean]))


@dataclass(frozen=True)
class ScoredNeurons:
    """The score of every neuron on both sides, float32 [neurons] per hook point, from which sets are selected.

    `significant` is the number of neurons per hook point that differ between the sides, for scores that test it.
    """

    model: ChatModel
    score: Score
    tokens: Tokens
    seed: int
    harmful: NeuronValues
    benign: NeuronValues
    directions: Directions
    significant: tuple[int, ...] | None = None

    def top(self, percent: float, scope: str | None = None, selection: str = "difference") -> NeuronSet:
        """Select `percent` of the neurons; the scope defaults to the score's."""
        model, points = self.model, self.model.hook_points
        layers = tuple(point.layer for point in points)
        scope = scope or self.score.scope
        rejection, conformity = select(
            self.harmful, self.benign, percent, scope, self.score.contrastive, layers, selection
        )
        provenance = Provenance(
            model=model.name,
            identity=model.identity,
            score=self.score.name,
            percent=percent,
            scope=scope,
            seed=self.seed,
            parameters_per_neuron=tuple(point.parameters_per_neuron for point in points),
            parameters_total=model.parameters,
            coverage=str(model.coverage),
            tokens=self.tokens,
            selection=selection,
            significant=self.significant,
        )
        widths = tuple(point.width for point in points)
        return NeuronSet(
            sorted_indices(rejection), sorted_indices(conformity), widths, layers, provenance, self.directions
        )


def score_neurons(
    model: ChatModel,
    harmful: Sequence[str],
    benign: Sequence[str],
    config: FindConfig = FindConfig(),
    *,
    other: ChatModel | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    response_tokens: int = RESPONSE_TOKENS,
    advance: Advance = ignore,
    **options: Any,
) -> ScoredNeurons:
    """Score every neuron of the model; the arguments are those of `find`."""
    config = config.override(options)
    chosen = scores.get(config.score)
    counted = config.tokens or chosen.tokens
    if not harmful or not benign:
        raise SafetyNeuronsError(
            "Finding needs harmful and benign prompts: one of the two sets is empty. Give at least one of each."
        )
    check_reading(model, chosen, counted, config.last_tokens, config.positions, other)
    sides = read_both(
        model,
        harmful,
        benign,
        write_norms(model),
        tokens=counted,
        last_tokens=config.last_tokens,
        positions=config.positions,
        own_answers=chosen.own_answers,
        response_tokens=response_tokens,
        batch_size=batch_size,
        other=other,
        score=chosen,
        advance=advance,
    )
    return compute_score([sides], [measure_both(sides, chosen)], chosen, counted, config.positions, seed)


def compute_score(
    parts: Sequence[BothSides],
    measured: Sequence[tuple[NeuronValues, NeuronValues] | None],
    score: Score,
    tokens: Tokens,
    positions: int,
    seed: int,
) -> ScoredNeurons:
    """Score every neuron from prompts that have been read, in one or several parts."""
    evidence = gather(parts, measured, score, seed)
    on_harmful, on_benign = score.compute(evidence)
    reading = parts[0].harmful.reading
    counts: tuple[int, ...] | None = None
    # The test assumes independent tokens, so one per prompt.
    if score.tested and reading.tail == 1:
        counts = tuple(int(mask.sum()) for mask in significant(evidence.harmful, evidence.benign))
    where = directions(parts, positions)
    return ScoredNeurons(reading.model, score, tokens, seed, on_harmful, on_benign, where, counts)


def find(
    model: ChatModel,
    harmful: Sequence[str],
    benign: Sequence[str],
    config: FindConfig = FindConfig(),
    *,
    other: ChatModel | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    response_tokens: int = RESPONSE_TOKENS,
    advance: Advance = ignore,
    **options: Any,
) -> NeuronSet:
    """Find the neurons that set harmful prompts apart from benign ones.

    In a script that torchrun started, call `torch.distributed.init_process_group()` first and `find` in every process
    with its own copy of the model: they share the work, and all get the same neurons.

    Args:
        harmful, benign: requests, as a user would type them; all of them are read.
        config: how to find; `prompts` and `other_model` concern runs alone.
        other: a second checkpoint of the model, for scores that compare two.
        response_tokens: the longest response, where responses count.
        options: fields of `FindConfig` that replace those of `config`.

    Raises:
        SafetyNeuronsError: a set is empty, an option is unknown or does not fit the score, or the model cannot be
            read.
    """
    config = config.override(options)
    scored = score_neurons(
        model,
        harmful,
        benign,
        config,
        other=other,
        seed=seed,
        batch_size=batch_size,
        response_tokens=response_tokens,
        advance=advance,
    )
    return scored.top(config.percent, config.scope, config.selection)
