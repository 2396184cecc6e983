"""Hook points of routed experts (mixture of experts), and the layouts in which modules store their matrices.

While experts are hooked, our implementation runs them one by one, in steps between which values can be read and
changed: `read` (input projections), `activate` (to the neurons' activations), `project` (write matrix) and `finish`
(what follows). Only the tokens that the router sends to an expert have activations of its neurons.
"""

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.neurons.hook_points import ActivationHook, Activations, HookPoint, fetched


class ReadBlock(NamedTuple):
    """Rows of an expert's input projections: views of the weight [outputs, hidden] and of the bias, if any."""

    weight: Tensor
    bias: Tensor | None


class ExpertLayout(ABC):
    """How a module stores the matrices of its `count` experts of `inner` neurons each.

    By default experts are gated, and what they write is the result of `project`.
    """

    def __init__(self, module: Any, count: int, inner: int) -> None:
        self.module, self.count, self.inner = module, count, inner

    @abstractmethod
    def read_blocks(self, expert: int) -> tuple[ReadBlock, ...]:
        """The expert's input projections, in the order of the outputs of `read`."""

    @abstractmethod
    def write_vectors(self, expert: int) -> Tensor:
        """The expert's write vectors as a view [inner, hidden] of the weight."""

    def read(self, hidden: Tensor, expert: int) -> Tensor:
        """Apply the expert's input projections: [rows, hidden] to a new tensor [rows, outputs]."""
        parts = [functional.linear(hidden, block.weight, block.bias) for block in self.read_blocks(expert)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def activate(self, read: Tensor) -> Tensor:
        """Turn the result of `read` [rows, outputs] into activations [rows, inner]."""
        gate, up = read.chunk(2, -1)
        values: Tensor = self.act_fn(gate) * up
        return values

    @property
    def act_fn(self) -> Any:
        return self.module.act_fn

    def project(self, values: Tensor, expert: int) -> Tensor:
        """Apply the expert's write matrix: activations [rows, inner] to a new tensor [rows, hidden]."""
        return values @ self.write_vectors(expert)

    def finish(self, written: Tensor) -> Tensor:
        """Turn the result of `project` into what the expert writes, before its routing weight."""
        return written

    def parameters_per_neuron(self) -> int:
        """Number of weights of one neuron."""
        hidden, blocks = self.write_vectors(0).shape[1], self.read_blocks(0)
        rows = sum(len(block.weight) for block in blocks) // self.inner
        return hidden + rows * (hidden + (blocks[0].bias is not None))


class StackedExperts(ExpertLayout):
    """One 3D parameter per matrix, with the options of transformers' registry of experts implementations."""

    def __init__(self, module: Any) -> None:
        self.transposed: bool = getattr(module, "is_transposed", False)
        self.gated: bool = getattr(module, "has_gate", True)
        self.biased: bool = getattr(module, "has_bias", False)
        super().__init__(module, module.down_proj.shape[0], module.down_proj.shape[1 if self.transposed else 2])

    def read_blocks(self, expert: int) -> tuple[ReadBlock, ...]:
        name = "gate_up_proj" if self.gated else "up_proj"
        weight = getattr(self.module, name)[expert]
        bias = getattr(self.module, f"{name}_bias")[expert] if self.biased else None
        return (ReadBlock(weight.T if self.transposed else weight, bias),)

    def write_vectors(self, expert: int) -> Tensor:
        down: Tensor = self.module.down_proj[expert]
        return down if self.transposed else down.T

    def activate(self, read: Tensor) -> Tensor:
        if self.gated and not hasattr(self.module, "_apply_gate"):
            return super().activate(read)
        values: Tensor = self.module._apply_gate(read) if self.gated else self.module.act_fn(read)
        return values

    def project(self, values: Tensor, expert: int) -> Tensor:
        bias = self.module.down_proj_bias[expert] if self.biased else None
        return functional.linear(values, self.write_vectors(expert).T, bias)

    def finish(self, written: Tensor) -> Tensor:
        has_norm = getattr(self.module, "has_post_expert_norm", False)
        return self.module.post_expert_norm(written) if has_norm else written


class BatchedExperts(ExpertLayout):
    """Llama 4: gated, without biases; each expert runs on a copy of all tokens that the router has scaled."""

    def __init__(self, module: Any) -> None:
        super().__init__(module, *module.down_proj.shape[:2])

    def read_blocks(self, expert: int) -> tuple[ReadBlock, ...]:
        return (ReadBlock(self.module.gate_up_proj[expert].T, None),)

    def write_vectors(self, expert: int) -> Tensor:
        down: Tensor = self.module.down_proj[expert]
        return down


class FlatExperts(ExpertLayout):
    """DBRX: gated, without biases; the rows of all experts are concatenated in `mlp.w1`, `v1` and `w2`."""

    def __init__(self, module: Any) -> None:
        super().__init__(module, module.num_experts, module.mlp.w2.shape[0] // module.num_experts)

    @property
    def act_fn(self) -> Any:
        return self.module.mlp.activation_fn

    def read_blocks(self, expert: int) -> tuple[ReadBlock, ...]:
        return tuple(ReadBlock(self._rows(name, expert), None) for name in ("w1", "v1"))

    def write_vectors(self, expert: int) -> Tensor:
        return self._rows("w2", expert)

    def _rows(self, name: str, expert: int) -> Tensor:
        weight: Tensor = getattr(self.module.mlp, name)
        return weight[expert * self.inner : (expert + 1) * self.inner]


def expert_layout(module: nn.Module) -> ExpertLayout | None:
    """The layout of this module's experts; None if it has no experts or an unknown layout."""
    down = getattr(module, "down_proj", None)
    if isinstance(down, nn.Parameter) and down.dim() == 3:
        parameters = list(inspect.signature(type(module).forward).parameters)[1:]
        if parameters == ["hidden_states"]:
            return BatchedExperts(module)
        if hasattr(module, "is_transposed") or parameters == ["hidden_states", "top_k_index", "top_k_weights"]:
            return StackedExperts(module)
    if all(hasattr(getattr(module, "mlp", None), name) for name in ("w1", "v1", "w2")):
        return FlatExperts(module)
    return None


def feeding_rows(layout: ExpertLayout) -> tuple[Tensor, ...]:
    """The outputs of `read` that feed the neurons: row j of the result [inner] has the j-th output of each neuron.

    Found by gradients: an output that feeds neuron n alone changes the sum of c(n) * activation(n) by c(n) times as
    much as it changes the plain sum, for any c. Empty if an output feeds no neuron or several, or if neurons differ in
    the number of outputs: such experts can be read and calibrated, but not tuned.
    """
    outputs = sum(len(block.weight) for block in layout.read_blocks(0))
    device = layout.write_vectors(0).device
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        numbers = torch.arange(1, layout.inner + 1, dtype=torch.float64)
        # In the range in which no gate is closed and nothing is clamped.
        outputs_of_read = 0.5 + torch.rand(1, outputs, generator=generator, dtype=torch.float64)
        # Apple's GPUs have no float64.
        read = outputs_of_read.to("cpu" if device.type in ("meta", "mps") else device).requires_grad_()
        values = layout.activate(read)[0]
        plain, once, squared = (
            torch.autograd.grad(values @ weight.to(values), read, retain_graph=True)[0][0].cpu()
            for weight in (torch.ones_like(numbers), numbers, numbers.square())
        )
    fed = (once / plain).round()
    alone = (once - fed * plain).abs() <= 1e-6 * (fed * plain).abs()
    alone &= (squared - fed.square() * plain).abs() <= 1e-6 * (fed.square() * plain).abs()
    order = fed.argsort(stable=True)
    each = outputs // layout.inner
    expected = numbers.repeat_interleave(each)
    if not (plain.all() and alone.all() and len(expected) == outputs and torch.equal(fed[order], expected)):
        return ()
    return tuple(order.view(layout.inner, each).T)


class MatrixChange(Protocol):
    """Changes the results of an expert's matrices; both methods may modify the results, which are new tensors."""

    def read(self, hidden: Tensor, read: Tensor, expert: int) -> Tensor:
        """The new result of the input projections for `hidden` [rows, hidden]; the old is `read` [rows, outputs]."""

    def project(self, values: Tensor, written: Tensor, expert: int) -> Tensor:
        """The new result of the write matrix for `values` [rows, inner]; the old is `written` [rows, hidden]."""


@dataclass
class _HookedExperts:
    """The active hooks and changes of an experts module, and its own earlier `forward`, if it had one."""

    original: Any
    hooks: list[ActivationHook] = field(default_factory=list)
    changes: list[Callable[[], MatrixChange]] = field(default_factory=list)


@dataclass(frozen=True)
class ExpertHookPoint(HookPoint):
    """The neurons of all routed experts of a layer: neuron i of expert e has the index e * inner + i."""

    experts: nn.Module
    layout: ExpertLayout

    @property
    def blocks(self) -> int:
        return self.layout.count

    @cached_property
    def feeding_rows(self) -> tuple[Tensor, ...]:
        """See `feeding_rows`: row j [inner] has the j-th output of `read` for each neuron of an expert."""
        return feeding_rows(self.layout)

    @contextlib.contextmanager
    def hooked(self, hook: ActivationHook) -> Iterator[None]:
        with self._opened() as opened:
            opened.hooks.append(hook)
            try:
                yield
            finally:
                opened.hooks.remove(hook)

    @contextlib.contextmanager
    def changed(self, change: Callable[[], MatrixChange]) -> Iterator[None]:
        """Apply the `MatrixChange` that `change` returns at each forward pass while the context is open."""
        with self._opened() as opened:
            opened.changes.append(change)
            try:
                yield
            finally:
                opened.changes.remove(change)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[_HookedExperts]:
        """Run the experts with our implementation while the context is open."""
        if any(parameter.is_meta for child in self.experts.children() for parameter in child.parameters()):
            raise SafetyNeuronsError(f"The experts {self.name} are offloaded, which is not supported: load without.")
        # With offloaded weights, accelerate has wrapped `forward` and calls `_old_forward`.
        name = "_old_forward" if hasattr(self.experts, "_old_forward") else "forward"
        if self.experts not in _open:
            _open[self.experts] = _HookedExperts(self.experts.__dict__.get(name))
            self.experts.__dict__[name] = self._forward
        opened = _open[self.experts]
        try:
            yield opened
        finally:
            if not opened.hooks and not opened.changes:
                del _open[self.experts]
                if opened.original is None:
                    del self.experts.__dict__[name]
                else:
                    self.experts.__dict__[name] = opened.original

    def _forward(
        self, hidden_states: Tensor, top_k_index: Tensor | None = None, top_k_weights: Tensor | None = None
    ) -> Tensor:
        """Run on [tokens, hidden] with the router's indices and weights [tokens, top k], or on all experts' copies."""
        layout = self.layout
        changes = [change() for change in _open[self.experts].changes]
        if top_k_index is None or top_k_weights is None:
            written = torch.zeros_like(hidden_states).view(layout.count, -1, hidden_states.shape[-1])
            for expert, copy in enumerate(hidden_states.view(written.shape)):
                tokens = _routed(copy)
                written[expert].index_add_(0, tokens, self._run(copy, expert, tokens, None, changes))
            return written.view(hidden_states.shape)
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        written = torch.zeros_like(flat, dtype=torch.promote_types(flat.dtype, torch.float32))
        for expert in top_k_index.unique().tolist():
            tokens, slot = (top_k_index == expert).nonzero(as_tuple=True)
            routing = top_k_weights[tokens, slot]
            if expert < layout.count:
                written.index_add_(0, tokens, self._run(flat, expert, tokens, routing, changes).to(written.dtype))
            elif hasattr(self.experts, "identity_expert"):
                # LongCat has experts without matrices; elsewhere larger numbers are empty slots of the router.
                written.index_add_(0, tokens, (flat[tokens] * routing[:, None]).to(written.dtype))
        return written.to(hidden_states.dtype).view(hidden_states.shape)

    def _run(
        self, hidden: Tensor, expert: int, tokens: Tensor, routing: Tensor | None, changes: list[MatrixChange]
    ) -> Tensor:
        """What one expert writes for its tokens: [its tokens, hidden]."""
        layout, inputs = self.layout, hidden[tokens]
        read = layout.read(inputs, expert)
        for change in changes:
            read = change.read(inputs, read, expert)
        values = layout.activate(read)
        for hook in _open[self.experts].hooks:
            replaced = hook(Activations(values, expert * layout.inner, tokens, routing))
            values = values if replaced is None else replaced
        projected = layout.project(values, expert)
        for change in changes:
            projected = change.project(values, projected, expert)
        write = layout.finish(projected)
        return write if routing is None else write * routing[:, None]

    def raw_write_vectors(self, neurons: Tensor | None = None) -> Tensor:
        inner = self.layout.inner
        chosen = torch.arange(self.width) if neurons is None else neurons.cpu()
        with fetched(self.experts):
            vectors = [
                (places, self.layout.write_vectors(expert).detach()[chosen[places] - expert * inner].float())
                for expert in range(self.blocks)
                if len(places := (chosen // inner == expert).nonzero().flatten())
            ]
            if not vectors:
                return self.layout.write_vectors(0)[:0].detach().float()
        order = torch.cat([places for places, _ in vectors]).argsort()
        return torch.cat([rows for _, rows in vectors])[order]

    @property
    def parameters_per_neuron(self) -> int:
        return self.layout.parameters_per_neuron()


def _routed(copy: Tensor) -> Tensor:
    """The tokens routed to an expert: the router multiplies the others by zero."""
    return copy.any(-1).nonzero().flatten()


_open: WeakKeyDictionary[nn.Module, _HookedExperts] = WeakKeyDictionary()
