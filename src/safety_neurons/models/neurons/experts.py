"""The neurons of routed experts: while they are hooked, an implementation of ours runs them, one after the other.

A neuron is (expert, i). Only the tokens that the router sends to an expert have activations of its neurons.


How modules keep the matrices of their routed experts, and how one expert is computed from them.

Each expert is computed in steps, between which the values can be seen and changed: `read` (its read matrices),
`activate` (to the neurons' activations), `project` (its write matrix) and `finish` (what follows).
"""

import contextlib
import inspect
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
    """Rows of an expert's read matrices: views of the weight [outputs, hidden] and, where there is one, the bias."""

    weight: Tensor
    bias: Tensor | None


class ExpertLayout(Protocol):
    """How a module keeps the matrices of its experts."""

    count: int
    inner: int

    def read(self, hidden: Tensor, expert: int) -> Tensor:
        """[rows, hidden] to what the expert's read matrices return [rows, outputs]: a new tensor."""

    def activate(self, read: Tensor) -> Tensor:
        """What the read matrices returned [rows, outputs] to activations [rows, inner]."""

    def project(self, values: Tensor, expert: int) -> Tensor:
        """Activations [rows, inner] to what the expert's write matrix returns [rows, hidden]: a new tensor."""

    def finish(self, written: Tensor) -> Tensor:
        """What the write matrix returned to what the expert writes, before its routing weight."""

    def read_blocks(self, expert: int) -> tuple[ReadBlock, ...]:
        """The expert's read matrices, whose rows stand one below the other in what `read` returns."""

    def write_vectors(self, expert: int) -> Tensor:
        """The expert's write vectors [inner, hidden], as a view of the weight."""

    def parameters_per_neuron(self) -> int:
        """Weights that belong to one neuron."""


class StackedExperts:
    """One 3D parameter a matrix; the options are those of transformers' registry of experts implementations."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.transposed: bool = getattr(module, "is_transposed", False)
        self.gated: bool = getattr(module, "has_gate", True)
        self.biased: bool = getattr(module, "has_bias", False)
        self.count = module.down_proj.shape[0]
        self.inner = module.down_proj.shape[1 if self.transposed else 2]

    def read(self, hidden: Tensor, expert: int) -> Tensor:
        block = self.read_blocks(expert)[0]
        return functional.linear(hidden, block.weight, block.bias)

    def activate(self, read: Tensor) -> Tensor:
        values: Tensor
        if self.gated and hasattr(self.module, "_apply_gate"):
            values = self.module._apply_gate(read)
        elif self.gated:
            gate, up = read.chunk(2, -1)
            values = self.module.act_fn(gate) * up
        else:
            values = self.module.act_fn(read)
        return values

    def project(self, values: Tensor, expert: int) -> Tensor:
        bias = self.module.down_proj_bias[expert] if self.biased else None
        return functional.linear(values, self.write_vectors(expert).T, bias)

    def finish(self, written: Tensor) -> Tensor:
        if getattr(self.module, "has_post_expert_norm", False):
            written = self.module.post_expert_norm(written)
        return written

    def read_blocks(self, expert: int) -> tuple[ReadBlock, ...]:
        name = "gate_up_proj" if self.gated else "up_proj"
        weight = getattr(self.module, name)[expert]
        bias = getattr(self.module, f"{name}_bias")[expert] if self.biased else None
        return (ReadBlock(weight.T if self.transposed else weight, bias),)

    def write_vectors(self, expert: int) -> Tensor:
        down: Tensor = self.module.down_proj[expert]
        return down if self.transposed else down.T

    def parameters_per_neuron(self) -> int:
        hidden = self.write_vectors(0).shape[1]
        return hidden + (2 if self.gated else 1) * (hidden + int(self.biased))


class BatchedExperts:
    """Llama 4's: gated, without biases, every expert run on a copy of all tokens that the router has scaled."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.count, self.inner, _ = module.down_proj.shape

    def read(self, hidden: Tensor, expert: int) -> Tensor:
        read: Tensor = hidden @ self.module.gate_up_proj[expert]
        return read

    def activate(self, read: Tensor) -> Tensor:
        gate, up = read.chunk(2, -1)
        values: Tensor = up * self.module.act_fn(gate)
        return values

    def project(self, values: Tensor, expert: int) -> Tensor:
        return values @ self.write_vectors(expert)

    def finish(self, written: Tensor) -> Tensor:
        return written

    def read_blocks(self, expert: int) -> tuple[ReadBlock, ...]:
        return (ReadBlock(self.module.gate_up_proj[expert].T, None),)

    def write_vectors(self, expert: int) -> Tensor:
        down: Tensor = self.module.down_proj[expert]
        return down

    def parameters_per_neuron(self) -> int:
        return 3 * int(self.module.down_proj.shape[2])


class FlatExperts:
    """DBRX's: gated, without biases, the rows of all experts below each other in `mlp.w1`, `v1` and `w2`."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.count = module.num_experts
        self.inner = module.mlp.w2.shape[0] // self.count

    def read(self, hidden: Tensor, expert: int) -> Tensor:
        return torch.cat([hidden @ self._rows("w1", expert).T, hidden @ self._rows("v1", expert).T], -1)

    def activate(self, read: Tensor) -> Tensor:
        gate, up = read.chunk(2, -1)
        values: Tensor = self.module.mlp.activation_fn(gate) * up
        return values

    def project(self, values: Tensor, expert: int) -> Tensor:
        return values @ self.write_vectors(expert)

    def finish(self, written: Tensor) -> Tensor:
        return written

    def read_blocks(self, expert: int) -> tuple[ReadBlock, ...]:
        return tuple(ReadBlock(self._rows(name, expert), None) for name in ("w1", "v1"))

    def write_vectors(self, expert: int) -> Tensor:
        return self._rows("w2", expert)

    def _rows(self, name: str, expert: int) -> Tensor:
        weight: Tensor = getattr(self.module.mlp, name)
        return weight[expert * self.inner : (expert + 1) * self.inner]

    def parameters_per_neuron(self) -> int:
        return 3 * int(self.module.mlp.w2.shape[1])


def expert_layout(module: nn.Module) -> ExpertLayout | None:
    """How this module keeps experts; None where it keeps none, or in a way that is not known."""
    down = getattr(module, "down_proj", None)
    if isinstance(down, nn.Parameter) and down.dim() == 3:
        given = list(inspect.signature(type(module).forward).parameters)[1:]
        if given == ["hidden_states"]:
            return BatchedExperts(module)
        if hasattr(module, "is_transposed") or given == ["hidden_states", "top_k_index", "top_k_weights"]:
            return StackedExperts(module)
    if all(hasattr(getattr(module, "mlp", None), name) for name in ("w1", "v1", "w2")):
        return FlatExperts(module)
    return None


def feeding_rows(layout: ExpertLayout) -> tuple[Tensor, ...]:
    """The outputs of `read` that feed the neurons: row j of the result [inner] has each neuron's j-th one.

    Found by what moves what: an output that feeds neuron n alone moves the sum of c(n) * activation(n) by c(n) times
    as much as it moves the plain sum, whatever c is. Empty where an output moves nothing, or not one neuron alone, or
    where not all neurons have as many: such experts can be read and calibrated, not tuned.
    """
    outputs = sum(len(block.weight) for block in layout.read_blocks(0))
    device = layout.write_vectors(0).device
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        numbers = torch.arange(1, layout.inner + 1, dtype=torch.float64)
        # Within the range in which no gate is shut and nothing is clamped.
        given = 0.5 + torch.rand(1, outputs, generator=generator, dtype=torch.float64)
        # Apple's GPUs have no float64.
        read = given.to("cpu" if device.type in ("meta", "mps") else device).requires_grad_()
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
    """What is added to the results of an expert's matrices; both may write into the results, which are new tensors."""

    def read(self, hidden: Tensor, read: Tensor, expert: int) -> Tensor:
        """What the read matrices return for `hidden` [rows, hidden], instead of `read` [rows, outputs]."""

    def project(self, values: Tensor, written: Tensor, expert: int) -> Tensor:
        """What the write matrix returns for `values` [rows, inner], instead of `written` [rows, hidden]."""


@dataclass
class _Opened:
    """What looks into an experts module at present, and the forward pass that it had before, where it was its own."""

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
        """Row j [inner] has the output of an expert's read matrices that is the j-th to feed each of its neurons."""
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
        """Let what `change` returns at each forward pass add to the results of the experts' matrices."""
        with self._opened() as opened:
            opened.changes.append(change)
            try:
                yield
            finally:
                opened.changes.remove(change)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[_Opened]:
        """The experts run by our implementation while the context is open."""
        if any(parameter.is_meta for child in self.experts.children() for parameter in child.parameters()):
            raise SafetyNeuronsError(f"The experts {self.name} are kept on another device: load the model without.")
        # Where the weights are kept on another device, accelerate wraps the forward pass that it finds here.
        name = "_old_forward" if hasattr(self.experts, "_old_forward") else "forward"
        if self.experts not in _open:
            _open[self.experts] = _Opened(self.experts.__dict__.get(name))
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
        """[tokens, hidden] with the router's indices and weights [tokens, top k], or with all experts' copies."""
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
                # LongCat's experts without matrices; elsewhere larger numbers are slots that the router left empty.
                written.index_add_(0, tokens, (flat[tokens] * routing[:, None]).to(written.dtype))
        return written.to(hidden_states.dtype).view(hidden_states.shape)

    def _run(
        self, hidden: Tensor, expert: int, tokens: Tensor, routing: Tensor | None, changes: list[MatrixChange]
    ) -> Tensor:
        """What one expert writes for its tokens: [its tokens, hidden]."""
        layout, given = self.layout, hidden[tokens]
        read = layout.read(given, expert)
        for change in changes:
            read = change.read(given, read, expert)
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
    """The tokens that were sent to an expert: the router multiplies the others with zero."""
    return copy.any(-1).nonzero().flatten()


_open: WeakKeyDictionary[nn.Module, _Opened] = WeakKeyDictionary()
