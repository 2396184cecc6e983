"""MLP neurons of a layer: how their activations are seen and changed, and what they write to the residual stream.

A neuron's activation is an entry of the input of the matrix that writes to the residual stream (`down_proj`, `fc2`,
`c_proj` ...), so one hook there serves gated, fused and plain MLPs, and experts whose matrices are stacked.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.neurons.quantized import dequantized, is_8bit

# How many rows are pushed at once through a matrix whose weight cannot be read directly.
PROBE_ROWS = 1024


class Activations(NamedTuple):
    """Activations that a forward pass is about to write to the residual stream.

    `values` is [rows, neurons]: the columns are the site's neurons `first`, `first + 1` ... Row r belongs to token
    `tokens[r]` of the flattened batch [batch * tokens], or, where `tokens` is None, to token r. In a mixture of
    experts each row's write is multiplied with its routing weight in `routing` [rows]; None stands for ones.
    """

    values: Tensor
    first: int = 0
    tokens: Tensor | None = None
    routing: Tensor | None = None

    def of_tokens(self, per_token: Tensor) -> Tensor:
        """The rows of something that is known per token, [batch, tokens, ...], as [rows, ...]."""
        flat = per_token.flatten(0, 1)
        if self.tokens is None and len(flat) != len(self.values):
            raise SafetyNeuronsError(
                f"An MLP ran on {len(self.values)} of {len(flat)} tokens, and on which is not known: this model leaves "
                "tokens out in a way that cannot be followed."
            )
        return flat if self.tokens is None else flat[self.tokens.to(flat.device)]


# Returns the values that are written instead, or None to leave them as they are; never writes in place.
ActivationHook = Callable[[Activations], Tensor | None]


@dataclass(frozen=True)
class InputProjection:
    """One block of rows that feeds the neurons: row `offset + i` of `module` feeds neuron i."""

    name: str
    module: nn.Module
    offset: int


@dataclass(frozen=True)
class HookPoint(ABC):
    """The neurons of one MLP of a layer.

    `scale` is what the block multiplies the write with before it is added: one number, or one number per residual
    dimension where a norm follows the MLP (its gain).
    """

    layer: int
    name: str
    width: int
    post_norm: bool = field(default=False, kw_only=True)
    scale: Tensor | float = field(default=1.0, compare=False, kw_only=True)

    @property
    def blocks(self) -> int:
        """Into how many equal groups the neurons fall that always see the same tokens: the experts, or one."""
        return 1

    @abstractmethod
    def hooked(self, hook: ActivationHook) -> AbstractContextManager[None]:
        """Show `hook` every activation of these neurons, and let it replace them, while the context is open."""

    @abstractmethod
    def raw_write_vectors(self, neurons: Tensor | None = None) -> Tensor:
        """The rows of the write matrix [neurons, hidden], before `scale`, in float32."""

    @property
    @abstractmethod
    def parameters_per_neuron(self) -> int:
        """Weights that belong to one neuron: its column of the write matrix, its rows of the read matrices."""

    def write_vectors(self, neurons: Tensor | None = None) -> Tensor:
        """What one unit of each neuron's activation adds to the residual stream: float32 [neurons, hidden]."""
        weight = self.raw_write_vectors(neurons)
        return weight * (self.scale.to(weight.device) if isinstance(self.scale, Tensor) else self.scale)


@dataclass(frozen=True)
class DenseHookPoint(HookPoint):
    """The neurons of a plain MLP: all tokens pass through all of them."""

    write: nn.Module
    reads: tuple[InputProjection, ...] = ()

    @contextlib.contextmanager
    def hooked(self, hook: ActivationHook) -> Iterator[None]:
        def before_write(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            changed = hook(Activations(args[0].reshape(-1, self.width)))
            return None if changed is None else (changed.reshape(args[0].shape), *args[1:])

        handle = self.write.register_forward_pre_hook(before_write)
        try:
            yield
        finally:
            handle.remove()

    def raw_write_vectors(self, neurons: Tensor | None = None) -> Tensor:
        with fetched(self.write):
            if has_plain_weight(self.write):
                weight = rows_by_neuron(self.write).detach()
            elif is_8bit(self.write):
                weight = dequantized(self.write).T
            else:
                return _probe(self.write, self.width, neurons)
        return (weight if neurons is None else weight[neurons.to(weight.device)]).float()

    @cached_property
    def parameters_per_neuron(self) -> int:
        count = matrix_shape(self.write)[1]
        for read in self.reads:
            count += matrix_shape(read.module)[0] + (getattr(read.module, "bias", None) is not None)
        return count


@contextlib.contextmanager
def activation_hooks(hooks: Iterable[tuple[HookPoint, ActivationHook]]) -> Iterator[None]:
    """Hooks on sites while the context is open; removed also after an exception."""
    with contextlib.ExitStack() as stack:
        for hook_point, hook in hooks:
            stack.enter_context(hook_point.hooked(hook))
        yield


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(input, output) size of a linear layer; Conv1D keeps its weight the other way round."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def has_plain_weight(module: nn.Module) -> bool:
    """Whether the weight is there as numbers: quantized weights are packed, offloaded ones are elsewhere."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    shape = matrix_shape(module)
    expected = shape if isinstance(module, Conv1D) else shape[::-1]
    return weight.shape == expected and weight.is_floating_point() and weight.element_size() > 1 and not weight.is_meta


@contextlib.contextmanager
def fetched(module: nn.Module) -> Iterator[None]:
    """The module's own weights in memory while the context is open, also where accelerate keeps them elsewhere.

    Raises:
        SafetyNeuronsError: they are not in memory, and nothing is known that brings them there.
    """

    def elsewhere() -> bool:
        return any(parameter.is_meta for parameter in module.parameters(recurse=False))

    # Within the module's own forward pass they are here already, and must stay.
    with align_module_device(module) if elsewhere() else contextlib.nullcontext():
        if elsewhere():
            raise SafetyNeuronsError(
                f"The weights of a {type(module).__name__} are not in memory and cannot be fetched. Load the model "
                "with device_map, or let accelerate offload it (cpu_offload, disk_offload, dispatch_model)."
            )
        yield


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: where accelerate brings its weights if they are elsewhere, or where they are."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    hook = getattr(module, "_hf_hook", None)
    return torch.device(hook.execution_device) if weight.is_meta and hook is not None else weight.device


def rows_by_neuron(module: nn.Module) -> Tensor:
    """The write matrix as a view [neurons, hidden]: writing to it writes to the weight."""
    assert isinstance(module.weight, Tensor)
    return module.weight if isinstance(module, Conv1D) else module.weight.T


def rows_by_output(module: nn.Module) -> Tensor:
    """A read matrix as a view [outputs, hidden]: writing to it writes to the weight."""
    assert isinstance(module.weight, Tensor)
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def _probe(module: nn.Module, width: int, neurons: Tensor | None) -> Tensor:
    """The write vectors of a matrix of any storage format: what it returns for one unit of each neuron alone.

    It is what the model itself computes with, whatever the format, as the rows of a packed weight are not. Formats
    that round activations, too, round a unit vector to itself.
    """
    chosen = torch.arange(width) if neurons is None else neurons.cpu()
    buffer = next(iter([*module.parameters(), *module.buffers()]))
    dtype = buffer.dtype if buffer.is_floating_point() and buffer.element_size() > 1 else torch.float32
    rows = []
    with torch.no_grad():
        # Not through the hooks: one of them may be asking.
        nothing = module.forward(torch.zeros(1, width, device=buffer.device, dtype=dtype)).float()
        for part in chosen.split(PROBE_ROWS):
            units = torch.zeros(len(part), width, dtype=dtype).scatter_(1, part[:, None], 1)
            rows.append(module.forward(units.to(buffer.device)).float() - nothing)
    return torch.cat(rows)
