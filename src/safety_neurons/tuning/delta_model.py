"""The module that is trained: its only parameters are the neuron deltas, over a frozen base."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import halve_when_full
from safety_neurons.models.neurons.trace import decoder_layers
from safety_neurons.models.packing import pack
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning.batches import IGNORED, Collator, TokenizedPair
from safety_neurons.tuning.neuron_deltas import DeltaTensors, deltas_added, empty_delta


class DeltaModel(nn.Module):
    """Returns {"loss": ...}: the mean of -log p over the completions' tokens, plus a KL penalty.

    Each completion token of the pairs that `read_base` has read adds kl * KL(base || tuned).
    """

    # The trainer passes the number of tokens over all processes and micro batches.
    accepts_loss_kwargs = True

    def __init__(self, model: ChatModel, neurons: NeuronSet, kl: float = 0.0) -> None:
        super().__init__()
        # In a list, so that the base's weights are not moved, saved or counted with this module's.
        self._base = [model]
        self.neurons = neurons
        self.kl = kl
        # The base model's states for the KL penalty, by pair: [completion tokens, hidden].
        self.base_states: dict[int, Tensor] = {}
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

    def as_base(self) -> contextlib.AbstractContextManager[None]:
        """The base computes without any change while the context is open."""
        return contextlib.nullcontext()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        pairs: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`labels` [batch, kept] are those of the last `kept` tokens; -100 is not part of the loss.

        `pairs` [batch] are the numbers of the pairs in the corpus; those that `read_base` has read have the KL penalty.
        `num_items_in_batch` divides the sum over tokens. Default: the number of tokens in this batch.
        """
        # The trainer chooses the device of the inputs.
        device = self.base.device
        inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
        learned = labels != IGNORED
        rows = learned.nonzero().to(device)
        numbers = [] if pairs is None else pairs.tolist()
        kept = [place for place, number in enumerate(numbers) if number in self.base_states]
        states = [self.base_states[numbers[place]] for place in kept]
        with self.active():
            logits = completion_logits(self.base, inputs, rows, labels.shape[1], torch.cat(states) if states else None)
        tuned = logits[: len(rows)].float().log_softmax(-1)
        targets = labels[learned].to(tuned.device)
        loss = -tuned.gather(1, targets[:, None]).sum()
        if states:
            # Each tensor over the vocabulary takes as much memory as a layer.
            with torch.no_grad():
                base = logits[len(rows) :].float().log_softmax(-1)
                probabilities = base.exp()
                negative_entropy = base.mul_(probabilities).sum(-1)
                del base
            chosen = torch.isin(rows[:, 0], torch.tensor(kept, device=device)).to(tuned.device)
            loss = loss + self.kl * (negative_entropy - (probabilities * tuned[chosen]).sum(-1)).sum()
        count = len(targets) if num_items_in_batch is None else num_items_in_batch.to(loss.device)
        # Experts without a routed token must have a gradient, too: zero.
        every = sum(value.sum() for value in self.delta.values())
        return {"loss": (loss / count).to(input_ids.device) + 0 * every}

    def read_base(self, examples: Sequence[TokenizedPair], padding: int, batch_size: int) -> None:
        """Read the base model's final states on the completions with the KL penalty, for all steps of the training.

        The batches do not depend on the training's, so resumed training reads the same bytes.
        """
        if not self.kl:
            return
        collate = Collator(padding)
        wanted = sorted((each for each in examples if each.keep), key=lambda each: (len(each.input_ids), each.number))

        def read(batch: list[int]) -> None:
            tensors = collate([wanted[place] for place in batch])
            inputs = {name: tensors[name].to(self.base.device) for name in ("input_ids", "attention_mask")}
            learned = tensors["labels"] != IGNORED
            with torch.no_grad():
                states = completion_states(self.base, inputs, learned.nonzero(), learned.shape[1])
            counts = learned.sum(1).tolist()
            self.base_states |= dict(zip(tensors["pairs"].tolist(), states.split(counts), strict=True))

        places = list(range(len(wanted)))
        for start in range(0, len(places), batch_size):
            halve_when_full(read, places[start : start + batch_size])


def completion_logits(
    model: ChatModel, inputs: dict[str, Tensor], rows: Tensor, kept: int, more: Tensor | None = None
) -> Tensor:
    """Logits [rows, vocabulary] that predict the labels at `rows` [rows, 2] of [batch, kept].

    The head reads one flat matrix of the tokens that predict, with the states `more` [states, hidden] after them.
    """

    def joined(states: Tensor) -> Tensor:
        return states if more is None else torch.cat([states, more.to(states)])

    return _through_head(model, inputs, rows, kept, joined)


def completion_states(model: ChatModel, inputs: dict[str, Tensor], rows: Tensor, kept: int) -> Tensor:
    """The head's input [rows, hidden] for `completion_logits`."""
    seen: list[Tensor] = []

    def note(states: Tensor) -> Tensor:
        seen.append(states.detach().clone())
        # Logits are not needed.
        return states[:0]

    _through_head(model, inputs, rows, kept, note)
    return seen[0]


def _through_head(
    model: ChatModel, inputs: dict[str, Tensor], rows: Tensor, kept: int, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """The model's logits where the head reads `change(states)` of the states [rows, hidden] that predict the rows."""
    packed = pack(model.model, inputs)
    predicting = packed.places[rows[:, 0], rows[:, 1] - kept - 1 + inputs["input_ids"].shape[1]]

    def select(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        flat = args[0].flatten(0, -2)
        return (change(flat.index_select(0, predicting.to(flat.device)))[None], *args[1:])

    handle = model.model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits: Tensor = forward(model.model, packed.inputs, last_logits=0).logits[0]
    finally:
        handle.remove()
    return logits


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
