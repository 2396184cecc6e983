"""The neurons of routed experts: while they are hooked, an implementation of ours runs them, one after the other.

A neuron is (expert, i). Only the tokens that the router sends to an expert have activations of its neurons.
"""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.models.sites import ActivationHook, Activations, NeuronSite, fetched


class ExpertLayout(Protocol):
    """How a module keeps the matrices of its experts."""

    count: int
    inner: int

    def activations(self, hidden: Tensor, expert: int) -> Tensor:
        """[rows, hidden] to the expert's activations [rows, inner]."""

    def write(self, values: Tensor, expert: int) -> Tensor:
        """Activations [rows, inner] to what the expert writes [rows, hidden], before its routing weight."""

    def write_vectors(self, expert: int) -> Tensor:
        """The expert's write vectors [inner, hidden]."""

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

    def activations(self, hidden: Tensor, expert: int) -> Tensor:
        read = self._linear(hidden, "gate_up_proj" if self.gated else "up_proj", expert)
        values: Tensor
        if self.gated and hasattr(self.module, "_apply_gate"):
            values = self.module._apply_gate(read)
        elif self.gated:
            gate, up = read.chunk(2, -1)
            values = self.module.act_fn(gate) * up
        else:
            values = self.module.act_fn(read)
        return values

    def write(self, values: Tensor, expert: int) -> Tensor:
        written = self._linear(values, "down_proj", expert)
        if getattr(self.module, "has_post_expert_norm", False):
            written = self.module.post_expert_norm(written)
        return written

    def _linear(self, values: Tensor, name: str, expert: int) -> Tensor:
        weight = getattr(self.module, name)[expert]
        bias = getattr(self.module, f"{name}_bias")[expert] if self.biased else None
        return functional.linear(values, weight.T if self.transposed else weight, bias)

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

    def activations(self, hidden: Tensor, expert: int) -> Tensor:
        gate, up = (hidden @ self.module.gate_up_proj[expert]).chunk(2, -1)
        values: Tensor = up * self.module.act_fn(gate)
        return values

    def write(self, values: Tensor, expert: int) -> Tensor:
        return values @ self.write_vectors(expert)

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

    def activations(self, hidden: Tensor, expert: int) -> Tensor:
        gate, up = hidden @ self._rows("w1", expert).T, hidden @ self._rows("v1", expert).T
        values: Tensor = self.module.mlp.activation_fn(gate) * up
        return values

    def write(self, values: Tensor, expert: int) -> Tensor:
        return values @ self.write_vectors(expert)

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


@dataclass(frozen=True)
class ExpertSite(NeuronSite):
    """The neurons of all routed experts of a layer: neuron i of expert e has the index e * inner + i."""

    experts: nn.Module
    layout: ExpertLayout

    @property
    def blocks(self) -> int:
        return self.layout.count

    @contextlib.contextmanager
    def hooked(self, hook: ActivationHook) -> Iterator[None]:
        if any(parameter.is_meta for child in self.experts.children() for parameter in child.parameters()):
            raise SafetyNeuronsError(f"The experts {self.name} are kept on another device: load the model without.")
        hooks = _open.setdefault(self.experts, [])
        # Where the weights are kept on another device, accelerate wraps the forward pass that it finds here.
        name = "_old_forward" if hasattr(self.experts, "_old_forward") else "forward"
        if not hooks:
            _originals[self.experts] = self.experts.__dict__.get(name)
            self.experts.__dict__[name] = self._forward
        hooks.append(hook)
        try:
            yield
        finally:
            hooks.remove(hook)
            if not hooks:
                original = _originals.pop(self.experts)
                if original is None:
                    del self.experts.__dict__[name]
                else:
                    self.experts.__dict__[name] = original

    def _forward(
        self, hidden_states: Tensor, top_k_index: Tensor | None = None, top_k_weights: Tensor | None = None
    ) -> Tensor:
        """[tokens, hidden] with the router's indices and weights [tokens, top k], or with all experts' copies."""
        layout = self.layout
        if top_k_index is None or top_k_weights is None:
            written = torch.zeros_like(hidden_states).view(layout.count, -1, hidden_states.shape[-1])
            for expert, copy in enumerate(hidden_states.view(written.shape)):
                tokens = _routed(copy)
                written[expert].index_add_(0, tokens, self._run(copy, expert, tokens, None))
            return written.view(hidden_states.shape)
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        written = torch.zeros_like(flat, dtype=torch.promote_types(flat.dtype, torch.float32))
        for expert in top_k_index.unique().tolist():
            tokens, slot = (top_k_index == expert).nonzero(as_tuple=True)
            routing = top_k_weights[tokens, slot]
            if expert < layout.count:
                written.index_add_(0, tokens, self._run(flat, expert, tokens, routing).to(written.dtype))
            elif hasattr(self.experts, "identity_expert"):
                # LongCat's experts without matrices; elsewhere larger numbers are slots that the router left empty.
                written.index_add_(0, tokens, (flat[tokens] * routing[:, None]).to(written.dtype))
        return written.to(hidden_states.dtype).view(hidden_states.shape)

    def _run(self, hidden: Tensor, expert: int, tokens: Tensor, routing: Tensor | None) -> Tensor:
        """What one expert writes for its tokens: [its tokens, hidden]."""
        values = self.layout.activations(hidden[tokens], expert)
        for hook in _open[self.experts]:
            changed = hook(Activations(values, expert * self.layout.inner, tokens, routing))
            values = values if changed is None else changed
        write = self.layout.write(values, expert)
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


# The hooks of experts modules, and the forward passes that they had before, where these were their own.
_open: WeakKeyDictionary[nn.Module, list[ActivationHook]] = WeakKeyDictionary()
_originals: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
