"""Neuron deltas: trainable float32 changes of the chosen neurons' weights, over a frozen base of any dtype and format.

A neuron owns its rows of the input projections (gate and up, with their biases) and its column of the output
projection. Hooks add the deltas to the results of the base, so gradients and optimizer state exist for them alone, and
nothing else can change. They are computed in the base's dtype: each forward pass casts the small float32 masters.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
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
    """(prefix of the tensors' names, hook point, indices) of every hook point that has chosen neurons.

    Raises:
        SafetyNeuronsError: the rows that feed some of the neurons are unknown, so they cannot be tuned.
    """
    for number, (hook_point, indices) in enumerate(zip(model.hook_points, neurons.both, strict=True)):
        if not len(indices):
            continue
        assert isinstance(hook_point, TrainableHookPoint)
        if not (hook_point.reads if isinstance(hook_point, DenseHookPoint) else hook_point.feeding_rows):
            raise SafetyNeuronsError(
                f"The neurons of {hook_point.name} can be found, explained and calibrated, but not tuned: the rows of "
                "its input projections that feed each neuron are unknown."
            )
        yield f"site{number}", hook_point, indices


def empty_delta(model: ChatModel, neurons: NeuronSet, device: str = "cpu") -> DeltaTensors:
    """Zeros: `site{s}_read{j}_weight` and `site{s}_write` [neurons, hidden], `site{s}_read{j}_bias` [neurons]."""
    tensors: DeltaTensors = {}
    for prefix, hook_point, indices in trainable_hook_points(model, neurons):
        if isinstance(hook_point, DenseHookPoint):
            hidden = matrix_shape(hook_point.write)[1]
            biased = [getattr(read.module, "bias", None) is not None for read in hook_point.reads]
        else:
            hidden = hook_point.layout.write_vectors(0).shape[1]
            biased = [hook_point.layout.read_blocks(0)[0].bias is not None for _ in hook_point.feeding_rows]
        tensors[f"{prefix}_write"] = torch.zeros(len(indices), hidden, device=device)
        for number, has_bias in enumerate(biased):
            tensors[f"{prefix}_read{number}_weight"] = torch.zeros(len(indices), hidden, device=device)
            if has_bias:
                tensors[f"{prefix}_read{number}_bias"] = torch.zeros(len(indices), device=device)
    return tensors


def digest(delta: DeltaTensors) -> str:
    """Hash of the names and values."""
    content = hashlib.sha256()
    for name, value in sorted(delta.items()):
        content.update(name.encode())
        content.update(value.contiguous().view(torch.uint8).numpy().data)
    return content.hexdigest()[:16]


@contextlib.contextmanager
def deltas_added(model: ChatModel, neurons: NeuronSet, delta: DeltaTensors | nn.ParameterDict) -> Iterator[None]:
    """Add the deltas in every forward pass while the context is open; gradients flow into `delta`.

    The tensors are read in each forward pass, so they can be trained while the context is open. With gradient
    checkpointing it must stay open during the backward pass, which runs the layers again.
    """
    with contextlib.ExitStack() as stack:
        for prefix, hook_point, indices in trainable_hook_points(model, neurons):
            stack.enter_context(added_to_hook_point(hook_point, prefix, indices, delta))
        yield


@contextlib.contextmanager
def added_to_hook_point(
    hook_point: TrainableHookPoint, prefix: str, indices: Tensor, delta: DeltaTensors | nn.ParameterDict
) -> Iterator[None]:
    """`deltas_added` for one hook point."""
    if isinstance(hook_point, ExpertHookPoint):
        with hook_point.changed(expert_deltas(hook_point, prefix, indices, delta)):
            yield
        return
    columns = indices.to(device_of(hook_point.write))
    # The output of a plain matrix is not needed for its gradient, so it is changed in place. Packed formats may return
    # a view, which autograd forbids to change.
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
    # Layers of a large model are on several devices; the deltas follow each layer's output.
    rows, fresh = rows.to(device_of(module)), has_plain_weight(module)

    def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weight, bias = delta[f"{name}_weight"], delta.get(f"{name}_bias", None)
        added = functional.linear(args[0], like(weight, args[0]), None if bias is None else like(bias, args[0]))
        add_to = output.index_add_ if fresh else output.index_add
        return add_to(-1, rows, like(added, output))

    return add


class ExpertRows(NamedTuple):
    """The chosen neurons of one expert: their places among those of the hook point, and their indices in the expert."""

    places: slice
    neurons: Tensor


def by_expert(hook_point: ExpertHookPoint, indices: Tensor) -> dict[int, ExpertRows]:
    """The chosen neurons (sorted) of each expert that has any."""
    inner, chosen, start = hook_point.layout.inner, {}, 0
    for expert, count in enumerate(torch.bincount(indices // inner, minlength=hook_point.blocks).tolist()):
        if count:
            places = slice(start, start + count)
            chosen[expert] = ExpertRows(places, indices[places] - expert * inner)
        start += count
    return chosen


@dataclass(frozen=True)
class ExpertDeltas:
    """Adds the deltas of a hook point to its experts' results in one forward pass (a `MatrixChange`).

    `reads` has the weights [neurons, hidden] and biases by expert for each of the outputs that feed a neuron.
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


def expert_deltas(
    hook_point: ExpertHookPoint, prefix: str, indices: Tensor, delta: Mapping[str, Tensor] | nn.ParameterDict
) -> Callable[[], ExpertDeltas]:
    """A function that makes the `ExpertDeltas` of each forward pass; gradients flow into `delta`."""
    chosen = by_expert(hook_point, indices)
    counts = [len(rows.neurons) for rows in chosen.values()]

    # Split once: a view per expert would have a gradient as large as the whole tensor.
    def split(name: str) -> dict[int, Tensor]:
        return dict(zip(chosen, delta[f"{prefix}_{name}"].split(counts), strict=True))

    def deltas() -> ExpertDeltas:
        reads = tuple(
            (split(f"read{number}_weight"), split(f"read{number}_bias") if biased else None)
            for number in range(len(hook_point.feeding_rows))
        )
        return ExpertDeltas(chosen, hook_point.feeding_rows, reads, split("write"))

    biased = f"{prefix}_read0_bias" in delta
    return deltas


def like(one: Tensor, other: Tensor) -> Tensor:
    """A tensor on the device and in the dtype of another."""
    return one.to(other.device, other.dtype)


def has_plain_weights(hook_point: TrainableHookPoint) -> bool:
    """Whether the weights of the hook point are in memory as plain numbers, neither packed nor offloaded."""
    if isinstance(hook_point, DenseHookPoint):
        return all(map(has_plain_weight, (hook_point.write, *(read.module for read in hook_point.reads))))
    return all(
        parameter.is_floating_point() and parameter.element_size() > 1 and not parameter.is_meta
        for parameter in hook_point.experts.parameters()
    )


class WeightRows(NamedTuple):
    """The rows of a base weight that a delta changes: `places` of its tensor `name` are for `rows` of `view`.

    `view` is a view of a weight or of a bias.
    """

    name: str
    places: slice | Tensor
    view: Tensor
    rows: Tensor


def weight_rows(prefix: str, hook_point: TrainableHookPoint, indices: Tensor) -> Iterator[WeightRows]:
    """The rows of the chosen neurons (sorted) of a hook point with plain weights."""
    if isinstance(hook_point, DenseHookPoint):
        parts = _of_dense(prefix, hook_point, indices)
    else:
        parts = _of_experts(prefix, hook_point, indices)
    for part in parts:
        yield part._replace(view=part.view.detach())


def _of_dense(prefix: str, hook_point: DenseHookPoint, indices: Tensor) -> Iterator[WeightRows]:
    everywhere = slice(None)
    yield WeightRows(f"{prefix}_write", everywhere, rows_by_neuron(hook_point.write), indices)
    for number, read in enumerate(hook_point.reads):
        rows = indices + read.offset
        yield WeightRows(f"{prefix}_read{number}_weight", everywhere, rows_by_output(read.module), rows)
        bias = getattr(read.module, "bias", None)
        if bias is not None:
            yield WeightRows(f"{prefix}_read{number}_bias", everywhere, bias, rows)


def _of_experts(prefix: str, hook_point: ExpertHookPoint, indices: Tensor) -> Iterator[WeightRows]:
    for expert, (places, neurons) in by_expert(hook_point, indices).items():
        yield WeightRows(f"{prefix}_write", places, hook_point.layout.write_vectors(expert), neurons)
        for number, feeding in enumerate(hook_point.feeding_rows):
            first = 0
            for block in hook_point.layout.read_blocks(expert):
                rows = feeding[neurons] - first
                inside = ((rows >= 0) & (rows < len(block.weight))).nonzero().flatten()
                where = inside + places.start
                yield WeightRows(f"{prefix}_read{number}_weight", where, block.weight, rows[inside])
                if block.bias is not None:
                    yield WeightRows(f"{prefix}_read{number}_bias", where, block.bias, rows[inside])
                first += len(block.weight)
