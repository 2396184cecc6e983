"""Sharding of a base that does not fit one device over processes: torch's fully_shard, and its reversal."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import distributed, nn
from torch.distributed import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from safety_neurons.core.distributed import environment_number, process_count
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.trace import decoder_layers


def shard_device() -> torch.device:
    """The device of each process's part."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def sharded(model: ChatModel) -> Iterator[None]:
    """Each process holds its part of every weight while the context is open, on its GPU if there is one.

    A layer's weights are gathered when it runs. Afterwards each process has all weights again, byte for byte, on their
    former devices, as new `nn.Parameter`s. A base that does not fit a single GPU must be loaded on the CPU.

    Raises:
        SafetyNeuronsError: there is only one process.
    """
    if process_count() < 2:
        raise SafetyNeuronsError(
            "shard splits the model over several processes, and there is one. Start them with torchrun, or set "
            "shard=False."
        )
    layers = decoder_layers(model.model)
    before = {module: _shape_of(module) for module in model.model.modules()}
    mesh = _mesh()
    try:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model.model, mesh=mesh)
        # With this mark, `generate` would expect all processes to generate.
        model.model._is_fsdp_managed_module = False
        yield
    finally:
        _gather(before)
        # torch cannot undo fully_shard, so everything that it added to the modules is removed.
        for module, shape in before.items():
            module.__class__ = shape.kind
            for name in module.__dict__.keys() - shape.attributes:
                del module.__dict__[name]
            for name, kept in shape.hooks.items():
                table = module.__dict__[name]
                for number in table.keys() - kept:
                    del table[number]


def _mesh() -> DeviceMesh:
    """All processes in one dimension. GPUs need their own group: gloo cannot gather weights there."""
    if shard_device().type == "cpu":
        return init_device_mesh("cpu", (process_count(),))
    here = environment_number("LOCAL_WORLD_SIZE")
    if here > torch.cuda.device_count():
        raise SafetyNeuronsError(
            f"shard needs a GPU for each process, and {here} processes share {torch.cuda.device_count()}. Start fewer."
        )
    return DeviceMesh.from_group(distributed.new_group(backend="nccl"), "cuda")


class _Shape(NamedTuple):
    """A module's class, attributes and hooks, and the devices of its tensors."""

    kind: type[nn.Module]
    attributes: frozenset[str]
    hooks: dict[str, frozenset[int]]
    devices: dict[str, torch.device]


def _shape_of(module: nn.Module) -> _Shape:
    tables = {name: table for name, table in module.__dict__.items() if "hooks" in name and isinstance(table, dict)}
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return _Shape(
        type(module),
        frozenset(module.__dict__),
        {name: frozenset(table) for name, table in tables.items()},
        {name: tensor.device for name, tensor in tensors},
    )


def _gather(before: dict[nn.Module, _Shape]) -> None:
    """Restore every weight, one at a time, and the devices of the buffers."""
    for module in before:
        if isinstance(module, FSDPModule):
            module.reshard()
    # Tied weights are one parameter in several modules.
    whole: dict[nn.Parameter, nn.Parameter] = {}
    for module, shape in before.items():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                if parameter not in whole:
                    value = parameter.detach().full_tensor().to(shape.devices[name])
                    whole[parameter] = nn.Parameter(value, requires_grad=parameter.requires_grad)
                module._parameters[name] = whole[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(shape.devices[name])
