"""A base that does not fit one device, shared out among processes: torch's fully_shard, and the way back."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import distributed, nn
from torch.distributed import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from safety_neurons.core.distributed import owns, process_count
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.trace import decoder_layers, dummy_input


def shard_device() -> torch.device:
    """Where each process holds its part."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def shared_out(model: ChatModel) -> Iterator[None]:
    """Every process holds its part of each weight while the context is open, on its GPU where there is one.

    A layer's weights are gathered when it runs. Afterwards each process has all of them again, byte for byte, where
    they were before: a base that fits no single GPU has to be loaded on the CPU. They are other `nn.Parameter`s.

    Raises:
        SafetyNeuronsError: there is one process only.
    """
    if process_count() < 2:
        raise SafetyNeuronsError(
            "shard shares the model out among several processes, and there is one: start them with torchrun, or leave "
            "shard out."
        )
    layers = decoder_layers(model.model)
    before = {module: _shape_of(module) for module in model.model.modules()}
    mesh = _mesh()
    try:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model.model, mesh=mesh)
        # By this mark `generate` would expect that all processes generate.
        model.model._is_fsdp_managed_module = False
        yield
    finally:
        _gather(before)
        # torch knows no way back: what fully_shard added to the modules is taken off again.
        for module, shape in before.items():
            module.__class__ = shape.kind
            for name in module.__dict__.keys() - shape.attributes:
                del module.__dict__[name]
            for name, kept in shape.hooks.items():
                table = module.__dict__[name]
                for number in table.keys() - kept:
                    del table[number]


@contextlib.contextmanager
def led_by_process_0(model: ChatModel) -> Iterator[None]:
    """The other processes run a shared-out model whenever process 0 does, until it leaves the context.

    They have to: each of them holds a part of the layers. What they compute is of no use.
    """

    def lead(*_: object) -> None:
        distributed.broadcast_object_list([True], src=0)

    if owns(0):
        # Before the hook that gathers the first weights.
        handle = model.model.register_forward_pre_hook(lead, prepend=True)
        try:
            yield
        finally:
            handle.remove()
            distributed.broadcast_object_list([False], src=0)
        return
    told = [True]
    while distributed.broadcast_object_list(told, src=0) or told[0]:
        model.model(**dummy_input(model.model), use_cache=False)
    yield


def _mesh() -> DeviceMesh:
    """All processes in a row. GPUs need a group of their own: weights cannot be gathered there over gloo."""
    if shard_device().type == "cpu":
        return init_device_mesh("cpu", (process_count(),))
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if here > torch.cuda.device_count():
        raise SafetyNeuronsError(
            f"shard needs a GPU for each process, and {here} processes share {torch.cuda.device_count()}: start fewer."
        )
    return DeviceMesh.from_group(distributed.new_group(backend="nccl"), "cuda")


class _Shape(NamedTuple):
    """A module's class, attributes, hooks and where its tensors are."""

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
    """Every weight whole again, one at a time, and buffers where they were."""
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
