"""The neurons of routed experts: an experts implementation of transformers' registry that shows each activation.

A neuron is (expert, i). Only the tokens that the router sends to an expert have activations of its neurons.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from safety_neurons.models.sites import ActivationHook, Activations, NeuronSite, fetched

IMPLEMENTATION = "safety-neurons"


class _Open(NamedTuple):
    """Experts that are hooked: the configuration to give back to them, and the hooks in the order they came."""

    config: Any
    hooks: list[ActivationHook]


_open: WeakKeyDictionary[nn.Module, _Open] = WeakKeyDictionary()


def is_experts(module: nn.Module) -> bool:
    """Whether these are stacked experts that transformers' registry of experts implementations can run."""
    down = getattr(module, "down_proj", None)
    return isinstance(down, nn.Parameter) and down.dim() == 3 and hasattr(module, "is_transposed")


def expert_neurons(module: Any) -> int:
    """Neurons of all experts of a module together."""
    return int(module.down_proj.shape[0] * module.down_proj.shape[1 if module.is_transposed else 2])


@dataclass(frozen=True)
class ExpertSite(NeuronSite):
    """The neurons of all routed experts of a layer: neuron i of expert e has the index e * inner + i."""

    experts: Any

    @property
    def blocks(self) -> int:
        return int(self.experts.num_experts)

    @property
    def inner(self) -> int:
        """Neurons in one expert."""
        return self.width // self.blocks

    @contextlib.contextmanager
    def hooked(self, hook: ActivationHook) -> Iterator[None]:
        if self.experts not in _open:
            _open[self.experts] = _Open(self.experts.config, [])
            # A configuration of its own: other modules that share the model's configuration keep their way of running.
            self.experts.config = copy.copy(self.experts.config)
            self.experts.config._experts_implementation = IMPLEMENTATION
        _open[self.experts].hooks.append(hook)
        try:
            yield
        finally:
            _open[self.experts].hooks.remove(hook)
            if not _open[self.experts].hooks:
                self.experts.config = _open.pop(self.experts).config

    def raw_write_vectors(self, neurons: Tensor | None = None) -> Tensor:
        with fetched(self.experts):
            down = self.experts.down_proj.detach()
        by_neuron = down if self.experts.is_transposed else down.transpose(1, 2)
        if neurons is None:
            return by_neuron.reshape(self.width, -1).float()
        neurons = neurons.to(down.device)
        return by_neuron[neurons // self.inner, neurons % self.inner].float()

    @property
    def parameters_per_neuron(self) -> int:
        experts = self.experts
        hidden = experts.down_proj.shape[2 if experts.is_transposed else 1]
        reads = 2 if experts.has_gate else 1
        return hidden + reads * (hidden + int(experts.has_bias))


def _forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """One expert after the other: hidden states [tokens, hidden], indices and weights [tokens, top k]."""
    written = torch.zeros_like(hidden_states, dtype=torch.float32)
    first_read = experts.gate_up_proj if experts.has_gate else experts.up_proj
    read_bias = (experts.gate_up_proj_bias if experts.has_gate else experts.up_proj_bias) if experts.has_bias else None
    for expert in top_k_index.unique().tolist():
        if expert >= experts.num_experts:
            continue  # A slot that the router left empty.
        tokens, slot = (top_k_index == expert).nonzero(as_tuple=True)
        routing = top_k_weights[tokens, slot]
        read = _linear(
            experts, hidden_states[tokens], first_read[expert], None if read_bias is None else read_bias[expert]
        )
        values = experts._apply_gate(read) if experts.has_gate else experts.act_fn(read)
        for hook in _open[experts].hooks:
            changed = hook(Activations(values, expert * values.shape[-1], tokens, routing))
            values = values if changed is None else changed
        bias = experts.down_proj_bias[expert] if experts.has_bias else None
        write = _linear(experts, values, experts.down_proj[expert], bias)
        if experts.has_post_expert_norm:
            write = experts.post_expert_norm(write)
        written.index_add_(0, tokens, (write * routing[:, None]).float())
    return written.to(hidden_states.dtype)


def _linear(experts: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(values, weight.T if experts.is_transposed else weight, bias)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _forward)
