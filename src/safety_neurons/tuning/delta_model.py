"""The module that is trained: its only parameters are the neuron deltas, over a frozen base."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.neurons.trace import decoder_layers
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning.neuron_deltas import DeltaTensors, deltas_added, empty_delta


class DeltaModel(nn.Module):
    """Returns {"loss": ...}: the mean of -log p over the completions' tokens, plus a KL penalty.

    Each completion token of the pairs marked `keep` adds kl * KL(base || tuned).
    """

    # The trainer passes the number of tokens over all processes and micro batches.
    accepts_loss_kwargs = True

    def __init__(self, model: ChatModel, neurons: NeuronSet, kl: float = 0.0, sharded: bool = False) -> None:
        super().__init__()
        # In a list, so that the base's weights are not moved, saved or counted with this module's.
        self._base = [model]
        self.neurons = neurons
        self.kl = kl
        self.sharded = sharded
        self.delta = nn.ParameterDict(
            {name: nn.Parameter(value) for name, value in empty_delta(model, neurons).items()}
        )

    @property
    def base(self) -> ChatModel:
        return self._base[0]

    def tensors(self) -> DeltaTensors:
        """The current values of the deltas."""
        return {name: value.detach().cpu().clone() for name, value in self.delta.items()}

    def active(self) -> contextlib.AbstractContextManager[None]:
        """The base computes with the deltas while the context is open."""
        return deltas_added(self.base, self.neurons, self.delta)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        keep: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`labels` [batch, kept] are those of the last `kept` tokens; -100 is not part of the loss.

        `keep` [batch] marks the pairs with the KL penalty. `num_items_in_batch` divides the sum over tokens. Default:
        the number of tokens in this batch.
        """
        # The trainer chooses the device of the inputs.
        device, kept = self.base.device, labels.shape[1]
        inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
        with self.active():
            logits = self._logits(inputs, kept)
        labels = labels.to(logits.device)
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        if self.kl and keep is not None:
            loss = loss + self.kl * self._kl_divergence(inputs, logits, labels, keep.to(logits.device))
        count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch.to(loss.device)
        # Experts without a routed token must have a gradient, too: zero.
        every = sum(value.sum() for value in self.delta.values())
        return {"loss": (loss / count).to(input_ids.device) + 0 * every}

    def _logits(self, inputs: dict[str, Tensor], kept: int) -> Tensor:
        """The logits for the last `kept` tokens: float32 [batch, kept, vocabulary]."""
        logits: Tensor = forward(self.base.model, inputs, last_logits=kept + 1).logits[:, -kept - 1 : -1]
        return logits.float()

    def _kl_divergence(self, inputs: dict[str, Tensor], logits: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
        """KL(base || tuned) of the pairs in `keep`, summed over their completions' tokens."""
        # Processes that share the base must run it equally often.
        rows = torch.ones_like(keep) if self.sharded else keep
        if not rows.any():
            return logits.new_zeros(())
        with torch.no_grad():
            some = {name: value[rows.to(value.device)] for name, value in inputs.items()}
            base = self._logits(some, labels.shape[1]).log_softmax(-1)
        tuned = logits[rows].log_softmax(-1)
        nats = functional.kl_div(tuned, base, reduction="none", log_target=True).sum(-1)
        return (nats * ((labels != -100) & keep[:, None])[rows]).sum()


@contextlib.contextmanager
def frozen(model: ChatModel) -> Iterator[None]:
    """The base without gradients while the context is open."""
    learning = [name for name, parameter in model.model.named_parameters() if parameter.requires_grad]
    model.model.requires_grad_(False)
    try:
        yield
    finally:
        # By name: sharding replaces the parameters of the base.
        for name in learning:
            model.model.get_parameter(name).requires_grad_(True)


@contextlib.contextmanager
def recomputed_layers(model: ChatModel, delta_model: DeltaModel) -> Iterator[None]:
    """The layers' activations are recomputed in the backward pass while the context is open (checkpointing).

    transformers' own switch has no effect in evaluation mode, and training mode would enable the base's dropout.
    """

    def again() -> tuple[Any, Any]:
        # The hooks that add the deltas are gone when the backward pass begins.
        return contextlib.nullcontext(), delta_model.active()

    layers = [(layer, layer.__dict__.get("forward")) for layer in decoder_layers(model.model)]
    try:
        for layer, _ in layers:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, context_fn=again)
        yield
    finally:
        for layer, own in layers:
            if own is None:
                del layer.forward
            else:
                layer.forward = own
