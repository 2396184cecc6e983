"""What the trainer sees: a module whose only parameters are the slices, over a base that stays as it is."""

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
    """Returns {"loss": ...}: the mean over the completions' tokens of -log p, and of how far the model moves.

    Where `kl` is not 0, each token of the pairs that are to be kept adds kl * KL(base || tuned).
    """

    # The trainer hands over how many tokens of all processes and micro batches the mean is over.
    accepts_loss_kwargs = True

    def __init__(self, model: ChatModel, neurons: NeuronSet, kl: float = 0.0, sharded: bool = False) -> None:
        super().__init__()
        # In a list, so that the base's weights are neither moved, saved nor counted as this module's.
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
        """The slices as they are now."""
        return {name: value.detach().cpu().clone() for name, value in self.delta.items()}

    def active(self) -> contextlib.AbstractContextManager[None]:
        """The base computes with the slices while the context is open."""
        return deltas_added(self.base, self.neurons, self.delta)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        keep: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`labels` [batch, kept] belong to the last `kept` tokens; -100 takes no part in the loss.

        `keep` [batch] marks the pairs on which the model is held to what it was; `num_items_in_batch` is what the
        sum over tokens is divided by, those of this batch when left out.
        """
        # The trainer has a device of its own choice.
        device, kept = self.base.device, labels.shape[1]
        inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
        with self.active():
            logits = self._logits(inputs, kept)
        labels = labels.to(logits.device)
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        if self.kl and keep is not None:
            loss = loss + self.kl * self._moved(inputs, logits, labels, keep.to(logits.device))
        count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch.to(loss.device)
        # Experts to which no token was sent have a gradient, too: zero.
        every = sum(value.sum() for value in self.delta.values())
        return {"loss": (loss / count).to(input_ids.device) + 0 * every}

    def _logits(self, inputs: dict[str, Tensor], kept: int) -> Tensor:
        """float32 [batch, kept, vocabulary]: the predictions of the last `kept` tokens."""
        logits: Tensor = forward(self.base.model, inputs, last_logits=kept + 1).logits[:, -kept - 1 : -1]
        return logits.float()

    def _moved(self, inputs: dict[str, Tensor], logits: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
        """KL(base || tuned) of the kept pairs, summed over their completions' tokens."""
        # Processes that hold the base together have to run it equally often.
        rows = torch.ones_like(keep) if self.sharded else keep
        if not rows.any():
            return logits.new_zeros(())
        with torch.no_grad():
            some = {name: value[rows.to(value.device)] for name, value in inputs.items()}
            base = self._logits(some, labels.shape[1]).log_softmax(-1)
        tuned = logits[rows].log_softmax(-1)
        moved = functional.kl_div(tuned, base, reduction="none", log_target=True).sum(-1)
        return (moved * ((labels != -100) & keep[:, None])[rows]).sum()


@contextlib.contextmanager
def frozen(model: ChatModel) -> Iterator[None]:
    """The base without gradients while the context is open."""
    learning = [name for name, parameter in model.model.named_parameters() if parameter.requires_grad]
    model.model.requires_grad_(False)
    try:
        yield
    finally:
        # By name: a base that was shared out among processes came back as other tensors.
        for name in learning:
            model.model.get_parameter(name).requires_grad_(True)


@contextlib.contextmanager
def recomputed_layers(model: ChatModel, delta_model: DeltaModel) -> Iterator[None]:
    """Activations of the layers are computed again in the backward pass instead of kept, while the context is open.

    transformers' own switch does nothing in evaluation mode, and training mode would drop out what the base computes.
    """

    def again() -> tuple[Any, Any]:
        # The hooks that add the slices are gone when the backward pass begins.
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
