"""The slices of neurons of routed experts: each expert's part is added where that expert runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from safety_neurons.models.experts import ExpertSite


class ExpertRows(NamedTuple):
    """The chosen neurons of one expert: their place among the site's, and their numbers within the expert."""

    places: slice
    neurons: Tensor


def by_expert(site: ExpertSite, indices: Tensor) -> dict[int, ExpertRows]:
    """The chosen neurons (sorted) of each expert that has some."""
    found = {}
    start = 0
    for expert, count in enumerate(torch.bincount(indices // site.layout.inner, minlength=site.blocks).tolist()):
        if count:
            places = slice(start, start + count)
            found[expert] = ExpertRows(places, indices[places] - expert * site.layout.inner)
        start += count
    return found


@dataclass(frozen=True)
class ExpertSlices:
    """Adds the slices of a site to its experts' results (a `MatrixChange`): parts of one forward pass.

    `reads` has, for each of the outputs that feed a neuron, the weights [neurons, hidden] and biases by expert.
    """

    chosen: Mapping[int, ExpertRows]
    feeding: tuple[Tensor, ...]
    reads: tuple[tuple[Mapping[int, Tensor], Mapping[int, Tensor] | None], ...]
    writes: Mapping[int, Tensor]

    def read(self, hidden: Tensor, read: Tensor, expert: int) -> Tensor:
        if expert in self.chosen:
            for rows, (weights, biases) in zip(self.feeding, self.reads, strict=True):
                bias = None if biases is None else like(biases[expert], hidden)
                added = functional.linear(hidden, like(weights[expert], hidden), bias)
                read.index_add_(-1, rows[self.chosen[expert].neurons].to(read.device), like(added, read))
        return read

    def project(self, values: Tensor, written: Tensor, expert: int) -> Tensor:
        if expert in self.chosen:
            own = values.index_select(-1, self.chosen[expert].neurons.to(values.device))
            written.add_(like(own @ like(self.writes[expert], values), written))
        return written


def expert_slices(
    site: ExpertSite, prefix: str, indices: Tensor, delta: Mapping[str, Tensor] | nn.ParameterDict
) -> Callable[[], ExpertSlices]:
    """What makes the slices of a site for each forward pass; gradients flow into `delta`."""
    chosen = by_expert(site, indices)
    counts = [len(rows.neurons) for rows in chosen.values()]

    # Split once: a view for each expert would have a gradient as large as the whole tensor.
    def split(name: str) -> dict[int, Tensor]:
        return dict(zip(chosen, delta[f"{prefix}_{name}"].split(counts), strict=True))

    def slices() -> ExpertSlices:
        reads = tuple(
            (split(f"read{number}_weight"), split(f"read{number}_bias") if biased else None)
            for number in range(len(site.feeding_rows))
        )
        return ExpertSlices(chosen, site.feeding_rows, reads, split("write"))

    biased = f"{prefix}_read0_bias" in delta
    return slices


def like(one: Tensor, other: Tensor) -> Tensor:
    """A tensor on the device and in the dtype of another."""
    return one.to(other.device, other.dtype)
