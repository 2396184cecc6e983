"""`find`: the safety neurons of a model, selected by a score on harmful and benign prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

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


def check_budget(percent: float, scope: str, selection: str = "difference") -> None:
    """Raise SafetyNeuronsError for an invalid budget, scope or selection."""
    if not 0 < percent <= 100:
        raise SafetyNeuronsError(f"percent must be above 0 and at most 100, not {percent}.")
    if scope not in ("layer", "model"):
        raise SafetyNeuronsError(f"scope must be 'layer' or 'model', not {scope!r}.")
    if selection not in ("difference", "none"):
        raise SafetyNeuronsError(f"selection must be 'difference' or 'none' (only harmful prompts), not {selection!r}.")


def top_percent(scores: Sequence[Tensor], percent: float, scope: str, layers: Sequence[int]) -> list[Tensor]:
    """Masks of the neurons with the highest scores per hook point, whose layers are `layers`.

    Negative scores are never selected; ties go to the lower index.
    """
    check_budget(percent, scope)
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
    section 3.1). For contrastive scores: one top-k over both sides. With the selection "none": the top-k on harmful
    prompts alone, and no conformity neurons.
    """
    check_budget(percent, scope, selection)
    if selection == "none":
        alone = top_percent(harmful, percent, scope, layers)
        return alone, [torch.zeros_like(mask) for mask in alone]
    if contrastive:
        chosen = top_percent(
            [torch.maximum(*pair) for pair in zip(harmful, benign, strict=True)], percent, scope, layers
        )
        rejection = [mask & (side >= 0) for mask, side in zip(chosen, harmful, strict=True)]
        conformity = [mask & (side >= 0) for mask, side in zip(chosen, benign, strict=True)]
        return rejection, conformity
    top_harmful, top_benign = (top_percent(side, percent, scope, layers) for side in (harmful, benign))
    rejection = [own & ~other for own, other in zip(top_harmful, top_benign, strict=True)]
    conformity = [own & ~other for own, other in zip(top_benign, top_harmful, strict=True)]
    return rejection, conformity


FALSE_DISCOVERY_RATE = 0.05


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
    *,
    score: str = "write-contrast",
    tokens: Tokens | None = None,
    last_tokens: int = 1,
    positions: int = 5,
    other: ChatModel | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    response_tokens: int = 32,
    advance: Advance = ignore,
) -> ScoredNeurons:
    """Score every neuron of the model; the arguments are those of `find`."""
    chosen = scores.get(score)
    counted = tokens or chosen.tokens
    if not harmful or not benign:
        raise SafetyNeuronsError("find needs harmful and benign prompts, but one of the two sets is empty.")
    check_reading(model, chosen, counted, last_tokens, positions, other)
    sides = read_both(
        model,
        harmful,
        benign,
        write_norms(model),
        tokens=counted,
        last_tokens=last_tokens,
        positions=positions,
        own_answers=chosen.own_answers,
        response_tokens=response_tokens,
        batch_size=batch_size,
        other=other,
        advance=advance,
    )
    return compute_score([sides], [measure_both(sides, chosen)], chosen, counted, positions, seed)


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
    *,
    score: str = "write-contrast",
    percent: float = 0.5,
    scope: str | None = None,
    selection: str = "difference",
    tokens: Tokens | None = None,
    last_tokens: int = 1,
    positions: int = 5,
    other: ChatModel | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    response_tokens: int = 32,
    advance: Advance = ignore,
) -> NeuronSet:
    """Find the neurons that set harmful prompts apart from benign ones.

    In a script that torchrun started, `torch.distributed.init_process_group()` before it makes the processes share
    the work; each of them calls `find` with a model of its own, and all get the same neurons.

    Args:
        harmful, benign: requests, as a user would type them.
        score: the ranking's name (`safety_neurons.neurons.scores.names()`).
        percent: the budget, in percent of the neurons of a layer or of the model.
        scope: "layer" or "model"; the score's own default when left out.
        selection: "difference" takes the top of harmful minus the top of benign prompts and the reverse (scores that
            compare the sides themselves take one top over both); "none" takes the top of harmful prompts alone.
        tokens: whose activations count: the "last" of the prompt, the whole "prompt", or the "response"; the score's
            own habit when left out.
        last_tokens: how many tokens at the prompt's end the "last" are.
        positions: for how many positions at the prompt's end the directions for calibration are kept.
        other: a second checkpoint of the model, for scores that compare two.
        response_tokens: the longest response, where responses count.

    Raises:
        SafetyNeuronsError: a set is empty, the score is unknown, an option does not fit it, or the model cannot be
            read.
    """
    check_budget(percent, scope or scores.get(score).scope, selection)
    scored = score_neurons(
        model,
        harmful,
        benign,
        score=score,
        tokens=tokens,
        last_tokens=last_tokens,
        positions=positions,
        other=other,
        seed=seed,
        batch_size=batch_size,
        response_tokens=response_tokens,
        advance=advance,
    )
    return scored.top(percent, scope, selection)
