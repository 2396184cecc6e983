"""SN-Tune's criterion: what a layer's output loses if a neuron is removed, on every harmful prompt.

SN-Tune selects the neurons that are among a layer's top k on *every* prompt, that is, whose worst rank over the prompts
is below k. Ranking by the worst rank gives the same sets for every k, and can meet a budget.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from safety_neurons.core.distributed import max_over_processes
from safety_neurons.models.forward import PromptPositions, follow_positions, forward
from safety_neurons.models.neurons.hook_points import Activations, activation_hooks
from safety_neurons.models.shared_prefix import share_prefix
from safety_neurons.neurons.capture import counted_rows, prompts_of_rows, stream, tails_of
from safety_neurons.neurons.scores.score import Evidence, NeuronValues, Reading, Score


class _Squares:
    """Hook that sums the squared activations over each prompt's counted tokens: [prompts, neurons]."""

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


def measure(reading: Reading) -> NeuronValues:
    """Each neuron's worst rank in its layer over the prompts, divided by the layer's neurons: [neurons] in [0, 1).

    A neuron with 0 is first in its layer on every prompt.
    """
    model = reading.model
    layers = [point.layer for point in model.hook_points]

    def run(batch: list[int]) -> NeuronValues:
        encoded = model.encode([reading.texts[index] for index in batch])
        tails = tails_of(reading.tail, batch)
        with torch.inference_mode(), follow_positions(model.model, reach=int(tails.max())) as where:
            prompts = share_prefix(model.model, encoded)
            sums = [_Squares(where, tails, point.width) for point in model.hook_points]
            with activation_hooks(zip(model.hook_points, sums, strict=True)):
                forward(model.model.base_model, prompts.inputs, cache=prompts.cache)
        worst = []
        for layer in dict.fromkeys(layers):
            members = [number for number, other in enumerate(layers) if other == layer]
            lost = torch.cat([sums[number].total.sqrt() * reading.norms.norm_2[number] for number in members], 1)
            ranks = (rank_in_row(lost) / lost.shape[1]).max(0).values
            worst += list(ranks.split([model.hook_points[number].width for number in members]))
        return worst

    found = [torch.zeros(point.width) for point in model.hook_points]
    for part in stream(reading.texts, run, reading.batch_size, reading.advance):
        found = [torch.maximum(one, other) for one, other in zip(found, part, strict=True)]
    max_over_processes(found)
    return found


def rank_in_row(values: Tensor) -> Tensor:
    """For each value, how many in its row are larger: float32 [rows, values]; ties share the better rank."""
    order = values.sort(1).values
    return (values.shape[1] - torch.searchsorted(order, values.contiguous(), right=True)).float()


def merge(parts: Sequence[NeuronValues], _sizes: Sequence[int]) -> NeuronValues:
    """The worst rank over several prompt sets."""
    return [torch.stack(ranks).max(0).values for ranks in zip(*parts, strict=True)]


def compute(evidence: Evidence) -> tuple[NeuronValues, NeuronValues]:
    assert evidence.measured is not None
    harmful, benign = (
        # Removing an expert that no token reached loses nothing.
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
