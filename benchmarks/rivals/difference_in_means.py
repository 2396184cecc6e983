"""Difference in means of the residual stream, added after one layer (CAA).

Rimsky et al. 2024, Steering Llama 2 via Contrastive Activation Addition (arXiv 2312.06681): the mean difference of the
stream between two kinds of prompts, times a strength, is added at every token after the user's prompt. Theirs are
pairs of answers to one question; ours are harmful and benign prompts at the last token. The layer is chosen on
validation prompts.
"""

from functools import partial

from torch import Tensor

from rivals.contract import Candidate, Lessons
from rivals.residual import ResidualSteering
from safety_neurons.calibration.config import Toward
from safety_neurons.models.neurons.trace import decoder_layers


def difference_in_means(lessons: Lessons, toward: Toward) -> list[Candidate]:
    """A candidate for each layer."""
    model, found = lessons.run.model, []
    layers, tail = decoder_layers(model.model), max(1, model.template_tail)
    away, target = lessons.harmful, lessons.benign
    if toward == "rejection":
        away, target = target, away
    for layer in lessons.layers:
        vector = target[:, layer, -1].mean(0) - away[:, layer, -1].mean(0)

        def steer(strength: float, layer: int = layer, vector: Tensor = vector) -> ResidualSteering:
            key = f"difference in means {layer} {strength} {vector.tolist()}"
            return ResidualSteering(key, [(layers[layer], partial(add, strength * vector))], tail)

        found.append(Candidate(f"layer {layer}", len(vector), lessons.residual_values, "residual values", steer))
    return found


def add(vector: Tensor, stream: Tensor) -> Tensor:
    """The stream [tokens, hidden] with a vector [hidden] added."""
    return stream + vector.to(stream.device)
