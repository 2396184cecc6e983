"""The slices of neurons of routed experts: each expert's part is added where that expert runs."""

from collections.abc import Mapping
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


class ExpertSlices:
    """Adds the slices of a site to its experts' results (a `MatrixChange`); gradients flow into `delta`."""

    def __init__(
        self, site: ExpertSite, prefix: str, indices: Tensor, delta: Mapping[str, Tensor] | nn.ParameterDict
    ) -> None:
        self.prefix, self.delta = prefix, delta
        self.chosen = by_expert(site, indices)
        self.feeding = site.feeding_rows

    def read(self, hidden: Tensor, read: Tensor, expert: int) -> Tensor:
        if expert not in self.chosen:
            return read
        places, neurons = self.chosen[expert]
        for number, rows in enumerate(self.feeding):
            weight = like(self.delta[f"{self.prefix}_read{number}_weight"][places], hidden)
            bias = self.delta.get(f"{self.prefix}_read{number}_bias", None)
            added = functional.linear(hidden, weight, None if bias is None else like(bias[places], hidden))
            read.index_add_(-1, rows[neurons].to(read.device), like(added, read))
        return read

    def project(self, values: Tensor, written: Tensor, expert: int) -> Tensor:
        if expert not in self.chosen:
            return written
        places, neurons = self.chosen[expert]
        weight = like(self.delta[f"{self.prefix}_write"][places], values)
        return written.add_(like(values.index_select(-1, neurons.to(values.device)) @ weight, written))


def like(one: Tensor, other: Tensor) -> Tensor:
    """A tensor on the device and in the dtype of another."""
    return one.to(other.device, other.dtype)
