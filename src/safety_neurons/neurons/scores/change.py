"""How much a neuron's activations differ in a second checkpoint that reads the same text."""

import torch
from torch import Tensor
from transformers import BatchEncoding

from safety_neurons.core.distributed import add_over_processes
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import PromptPositions, follow_positions, forward
from safety_neurons.models.neurons.hook_points import Activations, activation_hooks
from safety_neurons.neurons.capture import counted_rows, stream, tails_of
from safety_neurons.neurons.scores.score import Evidence, NeuronValues, Reading, Score

# Both models' activations on every counted token are held at once, so the batches are smaller.
SMALLER_BATCHES = 8


class _Stored:
    """Hook that stores the activations on the counted tokens [tokens, neurons]; 0 for tokens routed elsewhere."""

    def __init__(self, where: PromptPositions, tails: Tensor, width: int) -> None:
        self.where, self.tails, self.width = where, tails, width
        self.values = torch.empty(0)

    def __call__(self, activations: Activations) -> None:
        offsets = self.where.offsets
        if not self.values.numel():
            self.values = torch.zeros(offsets.numel(), self.width, dtype=activations.values.dtype)
        counted = counted_rows(activations, self.where, self.tails).cpu()
        tokens = activations.of_tokens(torch.arange(offsets.numel()).view(offsets.shape)).cpu()
        columns = slice(activations.first, activations.first + activations.values.shape[1])
        self.values[tokens[counted], columns] = activations.values.detach().cpu()[counted]


def measure(reading: Reading) -> NeuronValues:
    """Mean squared difference of both models' activations on the counted tokens: [neurons] per hook point."""
    model, other = reading.model, reading.other
    assert other is not None

    def run(batch: list[int]) -> tuple[list[Tensor], int]:
        inputs = model.encode([reading.texts[index] for index in batch])
        tails = tails_of(reading.tail, batch)
        first, second = (_activations(chat, inputs.to(chat.device), tails) for chat in (model, other))
        squares = [(one.double() - two.double()).square().sum(0) for one, two in zip(first, second, strict=True)]
        lengths = inputs["attention_mask"].sum(1, keepdim=True).cpu()
        return squares, int(torch.minimum(tails, lengths).sum())

    total = [torch.zeros(point.width, dtype=torch.float64) for point in model.hook_points]
    tokens = torch.zeros(1, dtype=torch.float64)
    for squares, count in stream(reading.texts, run, max(1, reading.batch_size // SMALLER_BATCHES), reading.advance):
        for point_total, more in zip(total, squares, strict=True):
            point_total += more
        tokens += count
    add_over_processes([*total, tokens])
    return [(point_total / tokens.clamp_min(1)).float() for point_total in total]


def _activations(chat: ChatModel, inputs: BatchEncoding, tails: Tensor) -> list[Tensor]:
    with torch.inference_mode(), follow_positions(chat.model) as where:
        stored = [_Stored(where, tails, point.width) for point in chat.hook_points]
        with activation_hooks(zip(chat.hook_points, stored, strict=True)):
            forward(chat.model, inputs)
    return [hook.values for hook in stored]


def compute(evidence: Evidence) -> tuple[NeuronValues, NeuronValues]:
    assert evidence.measured is not None
    harmful, benign = ([square.sqrt() for square in side] for side in evidence.measured)
    return harmful, benign


SCORE = Score(
    name="change",
    formula="rms over response tokens of a_i(other model) - a_i(model)",
    source="Chen et al., arXiv 2406.14144",
    tokens="response",
    scope="layer",
    contrastive=False,
    compute=compute,
    measure=measure,
    own_answers=True,
    compares_models=True,
)
