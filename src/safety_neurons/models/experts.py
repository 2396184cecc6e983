"""The neurons of routed experts: while they are hooked, an implementation of ours runs them, one after the other.

A neuron is (expert, i). Only the tokens that the router sends to an expert have activations of its neurons.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.models.expert_layouts import ExpertLayout, feeding_rows
from safety_neurons.models.sites import ActivationHook, Activations, NeuronSite, fetched


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
class ExpertSite(NeuronSite):
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
