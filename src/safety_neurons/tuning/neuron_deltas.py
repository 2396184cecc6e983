"""The slices of neurons of routed experts: each expert's part is added where that expert runs.

The trainable slices: parameters of their own, in float32, over a frozen base of any dtype and storage format.

A neuron owns its rows of the read matrices (gate and up, with their biases) and its column of the write matrix. The
slices are added to the base's results by hooks, so gradients and optimizer state exist for them alone, and nothing
else can move. They are computed in the dtype of the base: each forward pass casts the small masters, not its inputs.


Where the slices stand in the base's own weights."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.experts import ExpertHookPoint
from safety_neurons.models.neurons.hook_points import (
    DenseHookPoint,
    device_of,
    has_plain_weight,
    matrix_shape,
    rows_by_neuron,
    rows_by_output,
)
from safety_neurons.neurons.neuron_set import NeuronSet

DeltaTensors = dict[str, Tensor]
TrainableHookPoint = DenseHookPoint | ExpertHookPoint


def trainable_hook_points(model: ChatModel, neurons: NeuronSet) -> Iterator[tuple[str, TrainableHookPoint, Tensor]]:
    """(prefix of the slices' names, site, indices) of every site that has chosen neurons.

    Raises:
        SafetyNeuronsError: the rows that feed some of the neurons are not known, so they cannot be tuned.
    """
    for number, (hook_point, indices) in enumerate(zip(model.hook_points, neurons.both, strict=True)):
        if not len(indices):
            continue
        assert isinstance(hook_point, TrainableHookPoint)
        if not (hook_point.reads if isinstance(hook_point, DenseHookPoint) else hook_point.feeding_rows):
            raise SafetyNeuronsError(
                f"The neurons of {hook_point.name} can be found, explained and calibrated, but not tuned: "
                "which rows of its read matrices feed which neuron could not be established."
            )
        yield f"site{number}", hook_point, indices


def empty_delta(model: ChatModel, neurons: NeuronSet) -> DeltaTensors:
    """Zeros for every slice: `site{s}_read{j}_weight` and `site{s}_write` [neurons, hidden], biases [neurons]."""
    tensors: DeltaTensors = {}
    for prefix, hook_point, indices in trainable_hook_points(model, neurons):
        if isinstance(hook_point, DenseHookPoint):
            hidden = matrix_shape(hook_point.write)[1]
            biased = [getattr(read.module, "bias", None) is not None for read in hook_point.reads]
        else:
            hidden = hook_point.layout.write_vectors(0).shape[1]
            biased = [hook_point.layout.read_blocks(0)[0].bias is not None for _ in hook_point.feeding_rows]
        tensors[f"{prefix}_write"] = torch.zeros(len(indices), hidden)
        for number, has_bias in enumerate(biased):
            tensors[f"{prefix}_read{number}_weight"] = torch.zeros(len(indices), hidden)
            if has_bias:
                tensors[f"{prefix}_read{number}_bias"] = torch.zeros(len(indices))
    return tensors


def digest(delta: DeltaTensors) -> str:
    """A name for exactly these values."""
    found = hashlib.sha256()
    for name, value in sorted(delta.items()):
        found.update(name.encode())
        found.update(value.contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


@contextlib.contextmanager
def deltas_added(model: ChatModel, neurons: NeuronSet, delta: DeltaTensors | nn.ParameterDict) -> Iterator[None]:
    """Add the slices' part to every forward pass while the context is open; gradients flow into `delta`.

    The tensors are read anew in each forward pass, so they may be trained while the context is open. With gradient
    checkpointing it must stay open during the backward pass, which runs the layers again.
    """
    with contextlib.ExitStack() as stack:
        for prefix, hook_point, indices in trainable_hook_points(model, neurons):
            stack.enter_context(added_to_hook_point(hook_point, prefix, indices, delta))
        yield


def added_to_hook_point(
    hook_point: TrainableHookPoint, prefix: str, indices: Tensor, delta: DeltaTensors | nn.ParameterDict
) -> AbstractContextManager[None]:
    """`slices_added` for one site."""
    if isinstance(hook_point, ExpertHookPoint):
        return hook_point.changed(expert_slices(hook_point, prefix, indices, delta))
    return _added_to_dense(hook_point, prefix, indices, delta)


@contextlib.contextmanager
def _added_to_dense(
    hook_point: DenseHookPoint, prefix: str, indices: Tensor, delta: DeltaTensors | nn.ParameterDict
) -> Iterator[None]:
    columns = indices.to(device_of(hook_point.write))
    # A plain matrix returns a tensor of its own, and needs none of it for its gradient: it is added to in place.
    # What packed formats return may be a view that autograd forbids to change.
    fresh = has_plain_weight(hook_point.write)

    def add_write(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        chosen = args[0].index_select(-1, columns.to(args[0].device))
        added = like(chosen @ like(delta[f"{prefix}_write"], chosen), output)
        return output.add_(added) if fresh else output + added

    with contextlib.ExitStack() as stack:
        stack.callback(hook_point.write.register_forward_hook(add_write).remove)
        for number, read in enumerate(hook_point.reads):
            hook = _read_hook(read.module, indices + read.offset, f"{prefix}_read{number}", delta)
            stack.callback(read.module.register_forward_hook(hook).remove)
        yield


def _read_hook(
    module: nn.Module, rows: Tensor, name: str, delta: DeltaTensors | nn.ParameterDict
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    # A large model has layers on several devices; the slices follow each layer's results.
    rows, fresh = rows.to(device_of(module)), has_plain_weight(module)

    def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weight, bias = delta[f"{name}_weight"], delta.get(f"{name}_bias", None)
        added = functional.linear(args[0], like(weight, args[0]), None if bias is None else like(bias, args[0]))
        add_to = output.index_add_ if fresh else output.index_add
        return add_to(-1, rows, like(added, output))

    return add


class WeightSlice(NamedTuple):
    """The rows `places` of the delta's tensor `name` belong to `rows` of `view`, which shows a weight or a bias."""

    name: str
    places: slice | Tensor
    view: Tensor
    rows: Tensor


def has_plain_weights(hook_point: TrainableHookPoint) -> bool:
    """Whether the site's weights are there as numbers, neither packed nor elsewhere."""
    if isinstance(hook_point, DenseHookPoint):
        return all(map(has_plain_weight, (hook_point.write, *(read.module for read in hook_point.reads))))
    return all(
        parameter.is_floating_point() and parameter.element_size() > 1 and not parameter.is_meta
        for parameter in hook_point.experts.parameters()
    )


def weight_slices(prefix: str, hook_point: TrainableHookPoint, indices: Tensor) -> Iterator[WeightSlice]:
    """The slices of the chosen neurons (sorted) of a site whose weights are plain."""
    slices = (
        _of_dense(prefix, hook_point, indices)
        if isinstance(hook_point, DenseHookPoint)
        else _of_experts(prefix, hook_point, indices)
    )
    for slice_ in slices:
        yield slice_._replace(view=slice_.view.detach())


def _of_dense(prefix: str, hook_point: DenseHookPoint, indices: Tensor) -> Iterator[WeightSlice]:
    everywhere = slice(None)
    yield WeightSlice(f"{prefix}_write", everywhere, rows_by_neuron(hook_point.write), indices)
    for number, read in enumerate(hook_point.reads):
        rows = indices + read.offset
        yield WeightSlice(f"{prefix}_read{number}_weight", everywhere, rows_by_output(read.module), rows)
        bias = getattr(read.module, "bias", None)
        if bias is not None:
            yield WeightSlice(f"{prefix}_read{number}_bias", everywhere, bias, rows)


def _of_experts(prefix: str, hook_point: ExpertHookPoint, indices: Tensor) -> Iterator[WeightSlice]:
    for expert, (places, neurons) in by_expert(hook_point, indices).items():
        yield WeightSlice(f"{prefix}_write", places, hook_point.layout.write_vectors(expert), neurons)
        for number, feeding in enumerate(hook_point.feeding_rows):
            first = 0
            for block in hook_point.layout.read_blocks(expert):
                rows = feeding[neurons] - first
                inside = ((rows >= 0) & (rows < len(block.weight))).nonzero().flatten()
                where = inside + places.start
                yield WeightSlice(f"{prefix}_read{number}_weight", where, block.weight, rows[inside])
                if block.bias is not None:
                    yield WeightSlice(f"{prefix}_read{number}_bias", where, block.bias, rows[inside])
                first += len(block.weight)


class ExpertRows(NamedTuple):
    """The chosen neurons of one expert: their place among the site's, and their numbers within the expert."""

    places: slice
    neurons: Tensor


def by_expert(hook_point: ExpertHookPoint, indices: Tensor) -> dict[int, ExpertRows]:
    """The chosen neurons (sorted) of each expert that has some."""
    found = {}
    start = 0
    for expert, count in enumerate(
        torch.bincount(indices // hook_point.layout.inner, minlength=hook_point.blocks).tolist()
    ):
        if count:
            places = slice(start, start + count)
            found[expert] = ExpertRows(places, indices[places] - expert * hook_point.layout.inner)
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
    hook_point: ExpertHookPoint, prefix: str, indices: Tensor, delta: Mapping[str, Tensor] | nn.ParameterDict
) -> Callable[[], ExpertSlices]:
    """What makes the slices of a site for each forward pass; gradients flow into `delta`."""
    chosen = by_expert(hook_point, indices)
    counts = [len(rows.neurons) for rows in chosen.values()]

    # Split once: a view for each expert would have a gradient as large as the whole tensor.
    def split(name: str) -> dict[int, Tensor]:
        return dict(zip(chosen, delta[f"{prefix}_{name}"].split(counts), strict=True))

    def slices() -> ExpertSlices:
        reads = tuple(
            (split(f"read{number}_weight"), split(f"read{number}_bias") if biased else None)
            for number in range(len(hook_point.feeding_rows))
        )
        return ExpertSlices(chosen, hook_point.feeding_rows, reads, split("write"))

    biased = f"{prefix}_read0_bias" in delta
    return slices


def like(one: Tensor, other: Tensor) -> Tensor:
    """A tensor on the device and in the dtype of another."""
    return one.to(other.device, other.dtype)
