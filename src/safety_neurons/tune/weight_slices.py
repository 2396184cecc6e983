"""Where the slices stand in the base's own weights."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from safety_neurons.models.experts import ExpertSite
from safety_neurons.models.sites import DenseSite, has_plain_weight, rows_by_neuron, rows_by_output
from safety_neurons.tune.expert_slices import by_expert
from safety_neurons.tune.slices import TrainableSite


class WeightSlice(NamedTuple):
    """The rows `places` of the delta's tensor `name` belong to `rows` of `view`, which shows a weight or a bias."""

    name: str
    places: slice | Tensor
    view: Tensor
    rows: Tensor


def has_plain_weights(site: TrainableSite) -> bool:
    """Whether the site's weights are there as numbers, neither packed nor elsewhere."""
    if isinstance(site, DenseSite):
        return all(map(has_plain_weight, (site.write, *(read.module for read in site.reads))))
    return all(
        parameter.is_floating_point() and parameter.element_size() > 1 and not parameter.is_meta
        for parameter in site.experts.parameters()
    )


def weight_slices(prefix: str, site: TrainableSite, indices: Tensor) -> Iterator[WeightSlice]:
    """The slices of the chosen neurons (sorted) of a site whose weights are plain."""
    slices = _of_dense(prefix, site, indices) if isinstance(site, DenseSite) else _of_experts(prefix, site, indices)
    for slice_ in slices:
        yield slice_._replace(view=slice_.view.detach())


def _of_dense(prefix: str, site: DenseSite, indices: Tensor) -> Iterator[WeightSlice]:
    everywhere = slice(None)
    yield WeightSlice(f"{prefix}_write", everywhere, rows_by_neuron(site.write), indices)
    for number, read in enumerate(site.reads):
        rows = indices + read.offset
        yield WeightSlice(f"{prefix}_read{number}_weight", everywhere, rows_by_output(read.module), rows)
        bias = getattr(read.module, "bias", None)
        if bias is not None:
            yield WeightSlice(f"{prefix}_read{number}_bias", everywhere, bias, rows)


def _of_experts(prefix: str, site: ExpertSite, indices: Tensor) -> Iterator[WeightSlice]:
    for expert, (places, neurons) in by_expert(site, indices).items():
        yield WeightSlice(f"{prefix}_write", places, site.layout.write_vectors(expert), neurons)
        for number, feeding in enumerate(site.feeding_rows):
            first = 0
            for block in site.layout.read_blocks(expert):
                rows = feeding[neurons] - first
                inside = ((rows >= 0) & (rows < len(block.weight))).nonzero().flatten()
                where = inside + places.start
                yield WeightSlice(f"{prefix}_read{number}_weight", where, block.weight, rows[inside])
                if block.bias is not None:
                    yield WeightSlice(f"{prefix}_read{number}_bias", where, block.bias, rows[inside])
                first += len(block.weight)
