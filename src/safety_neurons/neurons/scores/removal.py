"""SN-Tune's criterion: what the layer's output loses when a neuron is removed, on every harmful prompt.

A neuron is kept where it is among the layer's top k on *every* prompt, which is: where its worst rank over the prompts
is below k. Ranking by the worst rank gives the same sets for every k, and lets a budget be met.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from safety_neurons.core.distributed import max_over_processes
from safety_neurons.models.forward import PromptPositions, follow_positions, forward
from safety_neurons.models.neurons.hook_points import Activations, activation_hooks
from safety_neurons.neurons.capture import counted_rows, prompts_of_rows, stream, tails_of
from safety_neurons.neurons.scores.score import Evidence, Layers, Reading, Score


class _Squares:
    """The hook of one site: each prompt's sum of squared activations over its counted tokens, [prompts, neurons]."""

    def __init__(self, where: PromptPositions, tails: Tensor, width: int) -> None:
        self.where, self.tails = where, tails
        self.total = torch.zeros(len(tails), width)

    def __call__(self, activations: Activations) -> None:
        values = activations.values.float()
        if activations.routing is not None:
            values = values * activations.routing[:, None].float()
        counted = counted_rows(activations, self.where, self.tails)
        prompts = prompts_of_rows(activations, self.where)[counted].cpu()
        columns = slice(activations.first, activations.first + values.shape[1])
        self.total[:, columns].index_add_(0, prompts, values[counted].square().cpu())


def measure(reading: Reading) -> Layers:
    """Each neuron's worst rank in its layer over the prompts, as a share of the layer's neurons: [neurons] in [0, 1).

    0 is a neuron that nothing in its layer outdoes on any prompt. Only the current batch's sizes are kept.
    """
    model = reading.model
    layers = [point.layer for point in model.hook_points]

    def run(batch: list[int]) -> Layers:
        inputs = model.encode([reading.texts[index] for index in batch])
        tails = tails_of(reading.tail, batch)
        with torch.inference_mode(), follow_positions(model.model) as where:
            sums = [_Squares(where, tails, point.width) for point in model.hook_points]
            with activation_hooks(zip(model.hook_points, sums, strict=True)):
                forward(model.model, inputs)
        worst = []
        for layer in dict.fromkeys(layers):
            mine = [number for number, other in enumerate(layers) if other == layer]
            lost = torch.cat([sums[number].total.sqrt() * reading.norms.norm_2[number] for number in mine], 1)
            ranks = (outdone_by(lost) / lost.shape[1]).max(0).values
            worst += list(ranks.split([model.hook_points[number].width for number in mine]))
        return worst

    found = [torch.zeros(point.width) for point in model.hook_points]
    for part in stream(reading.texts, run, reading.batch_size, reading.advance):
        found = [torch.maximum(one, other) for one, other in zip(found, part, strict=True)]
    max_over_processes(found)
    return found


def outdone_by(values: Tensor) -> Tensor:
    """How many of its row are larger than each value: float32 [rows, values]; equal values share the better rank."""
    order = values.sort(1).values
    return (values.shape[1] - torch.searchsorted(order, values.contiguous(), right=True)).float()


def merge(parts: Sequence[Layers], _sizes: Sequence[int]) -> Layers:
    """The worst rank over several prompt sets."""
    return [torch.stack(point).max(0).values for point in zip(*parts, strict=True)]


def compute(evidence: Evidence) -> tuple[Layers, Layers]:
    assert evidence.measured is not None
    harmful, benign = (
        # Experts that no token reached lose nothing.
        [(1 - worst).masked_fill(count == 0, -1.0) for worst, count in zip(ranks, side.count, strict=True)]
        for ranks, side in zip(evidence.measured, (evidence.harmful, evidence.benign), strict=True)
    )
    return harmful, benign


SCORE = Score(
    name="removal",
    formula="1 - worst rank over the prompts of |a_i| * ||r_i||_2 in its layer",
    source="SN-Tune, Zhao et al., ICLR 2025",
    tokens="last",
    scope="layer",
    contrastive=False,
    compute=compute,
    measure=measure,
    merge=merge,
)
