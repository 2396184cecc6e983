"""What neurons write at the last prompt position: write vectors weighted by mean activations.

The weights w_i are the mean activations on the side's own prompts ("mean", the paper, section 3.2), or these minus the
means on the other side's prompts ("difference").
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import Directions, NeuronSet

Weighting = Literal["difference", "mean"]
Side = Literal["rejection", "conformity"]
WEIGHTINGS: tuple[Weighting, ...] = ("difference", "mean")
SIDES: tuple[Side, ...] = ("rejection", "conformity")


class NeuronAddress(NamedTuple):
    """A neuron: the number of its hook point in `ChatModel.hook_points`, and its index there."""

    hook_point: int
    neuron: int


@dataclass(frozen=True)
class LayerWrites:
    """All neurons of one layer, with its hook points concatenated, and which of them are safety neurons.

    `vectors` [neurons, hidden] are the write vectors; `harmful` and `benign` [neurons] the mean activations at the last
    prompt position; `rejection` and `conformity` the indices of the safety neurons here; `starts` the number of each
    hook point and its first index. In a mixture of experts the means are over the tokens routed to the expert, without
    routing weights.
    """

    layer: int
    vectors: Tensor
    harmful: Tensor
    benign: Tensor
    rejection: Tensor
    conformity: Tensor
    starts: tuple[tuple[int, int], ...]

    def found(self, side: Side) -> Tensor:
        """The indices of one side's neurons."""
        return self.rejection if side == "rejection" else self.conformity

    def weights(self, side: Side, weighting: Weighting) -> Tensor:
        """w_i of every neuron of the layer, as a neuron of this side: float32 [neurons]."""
        own, other = (self.harmful, self.benign) if side == "rejection" else (self.benign, self.harmful)
        return own - other if weighting == "difference" else own

    def write(self, indices: Tensor | None, side: Side, weighting: Weighting) -> Tensor:
        """The write of these neurons together, or of the whole layer, the sum of w_i * r_i: float32 [hidden]."""
        weights = self.weights(side, weighting)
        return weights @ self.vectors if indices is None else weights[indices] @ self.vectors[indices]

    def address(self, index: int) -> NeuronAddress:
        """The address of a neuron of the layer."""
        point, start = max(pair for pair in self.starts if pair[1] <= index)
        return NeuronAddress(point, index - start)


def layer_writes(model: ChatModel, neurons: NeuronSet) -> Iterator[LayerWrites]:
    """The layers in order, one at a time: all write vectors in float32 are as large as a third of the model.

    Raises:
        SafetyNeuronsError: the neurons have no directions or fit another model.
    """
    directions = neurons.directions
    if directions is None:
        raise SafetyNeuronsError(
            "These neurons have no directions: load them with their directions, or run find again."
        )
    neurons.check_fits(model)
    for layer in dict.fromkeys(neurons.layers):
        yield _layer_writes(model, neurons, directions, layer)


def _layer_writes(model: ChatModel, neurons: NeuronSet, directions: Directions, layer: int) -> LayerWrites:
    points = [number for number, point in enumerate(model.hook_points) if point.layer == layer]
    ends = list(itertools.accumulate(model.hook_points[number].width for number in points))
    starts = tuple(zip(points, [0, *ends], strict=False))
    vectors = torch.cat([model.hook_points[number].write_vectors() for number in points])

    def joined(means: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([means[number][-1] for number in points]).to(vectors)

    def shifted(indices: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([indices[number] + start for number, start in starts]).to(vectors.device)

    return LayerWrites(
        layer,
        vectors,
        joined(directions.harmful),
        joined(directions.benign),
        shifted(neurons.rejection),
        shifted(neurons.conformity),
        starts,
    )
