"""Hook points: where the activations of a layer's MLP neurons are read and replaced, and their write vectors.

A neuron's activation is an entry of the input of the matrix that writes to the residual stream (`down_proj`, `fc2`,
`c_proj` ...; the value vectors of Geva et al. 2021), so one hook there serves gated, fused and plain MLPs, and experts
with stacked matrices.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from safety_neurons.core.errors import SafetyNeuronsError

# Number of rows per pass through a matrix whose weight cannot be read directly.
PROBE_ROWS = 1024


class Activations(NamedTuple):
    """Activations that a forward pass is about to write to the residual stream.

    `values` is [rows, neurons]: the columns are the hook point's neurons `first`, `first + 1` ... Row r belongs to
    token `tokens[r]` of the flattened batch [batch * tokens], or to token r if `tokens` is None. In a mixture of
    experts each row's write is multiplied by its routing weight in `routing` [rows]; None means ones.
    """

    values: Tensor
    first: int = 0
    tokens: Tensor | None = None
    routing: Tensor | None = None

    def of_tokens(self, per_token: Tensor) -> Tensor:
        """Select the rows [rows, ...] of values per token [batch, tokens, ...]."""
        flat = per_token.flatten(0, 1)
        if self.tokens is None and len(flat) != len(self.values):
            raise SafetyNeuronsError(
                f"An MLP ran on {len(self.values)} of {len(flat)} tokens, and it is not known on which: this model "
                "skips tokens in an unsupported way. Choose another model."
            )
        return flat if self.tokens is None else flat[self.tokens.to(flat.device)]


# Returns replacement values, or None to keep the activations; never modifies them in place.
ActivationHook = Callable[[Activations], Tensor | None]


@dataclass(frozen=True)
class InputProjection:
    """Rows of an input matrix of the MLP (such as `up_proj`): row `offset + i` of `module` feeds neuron i."""

    name: str
    module: nn.Module
    offset: int


@dataclass(frozen=True)
class HookPoint(ABC):
    """The neurons of one MLP of a layer.

    `scale` is the factor of the write before it is added to the residual stream: one number, or one per residual
    dimension if a norm follows the MLP (its gain).
    """

    layer: int
    name: str
    width: int
    post_norm: bool = field(default=False, kw_only=True)
    scale: Tensor | float = field(default=1.0, compare=False, kw_only=True)

    @property
    def blocks(self) -> int:
        """Number of equal groups of neurons that see the same tokens: the experts, or 1."""
        return 1

    @abstractmethod
    def hooked(self, hook: ActivationHook) -> AbstractContextManager[None]:
        """Call `hook` with all activations of these neurons, which it may replace, while the context is open."""

    @abstractmethod
    def raw_write_vectors(self, neurons: Tensor | None = None) -> Tensor:
        """The write vectors before `scale`: float32 [neurons, hidden]."""

    @property
    @abstractmethod
    def parameters_per_neuron(self) -> int:
        """Number of weights of one neuron: its write vector and its rows of the input projections."""

    def write_vectors(self, neurons: Tensor | None = None) -> Tensor:
        """What one unit of each neuron's activation adds to the residual stream: float32 [neurons, hidden]."""
        weight = self.raw_write_vectors(neurons)
        return weight * (self.scale.to(weight.device) if isinstance(self.scale, Tensor) else self.scale)


@dataclass(frozen=True)
class DenseHookPoint(HookPoint):
    """The neurons of a dense MLP: every token passes through all of them."""

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
        for projection in self.reads:
            module = projection.module
            count += matrix_shape(module)[0] + (getattr(module, "bias", None) is not None)
        return count


@contextlib.contextmanager
def activation_hooks(hooks: Iterable[tuple[HookPoint, ActivationHook]]) -> Iterator[None]:
    """Register hooks on hook points while the context is open."""
    with contextlib.ExitStack() as stack:
        for point, hook in hooks:
            stack.enter_context(point.hooked(hook))
        yield


def is_matrix(module: nn.Module) -> bool:
    """Whether the module is a linear layer."""
    return isinstance(module, nn.Linear | Conv1D)


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(input, output) size of a linear layer; Conv1D stores its weight transposed."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def has_plain_weight(module: nn.Module) -> bool:
    """Whether the weight is in memory as floating-point numbers: neither quantized nor offloaded."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    shape = matrix_shape(module)
    expected = shape if isinstance(module, Conv1D) else shape[::-1]
    return weight.shape == expected and weight.is_floating_point() and weight.element_size() > 1 and not weight.is_meta


@contextlib.contextmanager
def fetched(module: nn.Module) -> Iterator[None]:
    """Keep the module's own weights in memory while the context is open, also if accelerate offloads them.

    Raises:
        SafetyNeuronsError: they are not in memory and cannot be fetched.
    """

    def offloaded() -> bool:
        return any(parameter.is_meta for parameter in module.parameters(recurse=False))

    # Within the module's own forward pass they are in memory already, and must stay there.
    with align_module_device(module) if offloaded() else contextlib.nullcontext():
        if offloaded():
            raise SafetyNeuronsError(
                f"The weights of a {type(module).__name__} are not in memory and cannot be fetched. Load the model "
                "with device_map, or let accelerate offload it (cpu_offload, disk_offload, dispatch_model)."
            )
        yield


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module computes, also if its weights are offloaded."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    hook = getattr(module, "_hf_hook", None)
    return torch.device(hook.execution_device) if weight.is_meta and hook is not None else weight.device


def rows_by_neuron(module: nn.Module) -> Tensor:
    """The write matrix as a view [neurons, hidden] of the weight."""
    assert isinstance(module.weight, Tensor)
    return module.weight if isinstance(module, Conv1D) else module.weight.T


def rows_by_output(module: nn.Module) -> Tensor:
    """An input projection's matrix as a view [outputs, hidden] of the weight."""
    assert isinstance(module.weight, Tensor)
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def _probe(module: nn.Module, width: int, neurons: Tensor | None) -> Tensor:
    """The write vectors of a matrix in any storage format: its output for one unit of each neuron alone.

    These are the values that the model computes with. Formats that round activations too keep unit vectors exact.
    """
    chosen = torch.arange(width) if neurons is None else neurons.cpu()
    buffer = next(iter([*module.parameters(), *module.buffers()]))
    dtype = buffer.dtype if buffer.is_floating_point() and buffer.element_size() > 1 else torch.float32
    rows = []
    with torch.no_grad():
        # `forward` bypasses the hooks, as one of them may be the caller.
        bias = module.forward(torch.zeros(1, width, device=buffer.device, dtype=dtype)).float()
        for part in chosen.split(PROBE_ROWS):
            units = torch.zeros(len(part), width, dtype=dtype).scatter_(1, part[:, None], 1)
            rows.append(module.forward(units.to(buffer.device)).float() - bias)
    return torch.cat(rows)


def is_8bit(module: nn.Module) -> bool:
    """Whether bitsandbytes stores this matrix in 8 bits (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339)."""
    return type(getattr(module, "weight", None)).__name__ == "Int8Params"


def dequantized(module: Any) -> Tensor:
    """The weight of an 8-bit matrix: float32 [outputs, inputs]."""
    # Imported late: it is slow, and few models need it.
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    return dequantize_bnb_weight(module.weight, module.state).float()


@contextlib.contextmanager
def without_rounding(module: nn.Module) -> Iterator[None]:
    """Keep the 8-bit matrices within a module from rounding their inputs while the context is open.

    They round each token's input to 8 bits, except for the columns in which any token has a large value. So the
    rounding of a token depends on the other tokens, which would look like attention to them.
    """
    with contextlib.ExitStack() as stack:
        for matrix in module.modules():
            if is_8bit(matrix):
                stack.callback(matrix.register_forward_hook(_Exact()).remove)
        yield


class _Exact:
    """Hook of one matrix that recomputes its output with a weight in the precision of the input."""

    weight: Tensor | None = None

    def __call__(self, module: Any, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        inputs = args[0]
        if self.weight is None:
            self.weight = dequantized(module).to(inputs.dtype)
        bias = None if module.bias is None else module.bias.to(inputs.dtype)
        return functional.linear(inputs, self.weight, bias)
