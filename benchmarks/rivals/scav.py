"""SCAV: a linear probe in every layer, and the smallest perturbation that moves its probability to a target.

Xu et al. 2024, Uncovering Safety Risks of Large Language Models through Concept Activation Vector (arXiv 2404.12038):
P(e) = sigmoid(w e + b) is a probe of the layer's output at the last token. In layers whose probe is right on more than
90% of held-out prompts, e becomes e - eps v with v = w / |w| and the least eps for which P(e) is the target; theirs is
P0 = 0.01%. Later layers are perturbed after earlier ones, at the last prompt token and at every generated token. Toward
rejection the target is 1 - P0. Strength 0 is the target that leaves all training prompts alone, 1 is P0, and between
and beyond the log-odds are interpolated, so that the method can be scaled.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from rivals.contract import Candidate, Lessons
from rivals.residual import ResidualSteering
from safety_neurons.calibration.config import Toward
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.neurons.trace import decoder_layers

# The paper's P0 and P1.
TARGET, ACCURACY = 1e-4, 0.9


@dataclass(frozen=True)
class Probe:
    """Log-odds w e + b of the side to move away from; `highest` is the largest of a training prompt of that side."""

    weight: Tensor
    bias: float
    highest: float
    accuracy: float

    @classmethod
    def fit(cls, away: Tensor, target: Tensor, held_out: tuple[Tensor, Tensor]) -> "Probe":
        """Fit on outputs [prompts, hidden] of the two sides; `held_out` are others, in this order."""
        probe = LogisticRegression(max_iter=5000).fit(*_labeled(away, target))
        weight, bias = torch.from_numpy(probe.coef_[0]).float(), float(probe.intercept_[0])
        highest = float((away @ weight).max()) + bias
        return cls(weight, bias, highest, float(probe.score(*_labeled(*held_out))))

    def perturbed(self, strength: float, stream: Tensor) -> Tensor:
        """The outputs [tokens, hidden] at the nearest points whose log-odds are at most those of this strength."""
        weight = self.weight.to(stream.device)
        limit = self.highest + strength * (math.log(TARGET / (1 - TARGET)) - self.highest)
        excess = (stream @ weight + self.bias - limit).clamp_min(0)
        return stream - excess[:, None] * weight / weight.square().sum()


def _labeled(away: Tensor, target: Tensor) -> tuple[object, list[int]]:
    return torch.cat([away, target]).numpy(), [1] * len(away) + [0] * len(target)


def scav(lessons: Lessons, toward: Toward) -> list[Candidate]:
    """One candidate: the probes choose the layers.

    Raises:
        SafetyNeuronsError: no probe is good enough.
    """
    layers = decoder_layers(lessons.run.model.model)
    away, target, held_out = lessons.harmful, lessons.benign, lessons.held_out
    if toward == "rejection":
        away, target, held_out = target, away, (held_out[1], held_out[0])
    probes = {}
    for layer in range(len(layers)):
        sides = [side[:, layer, -1] for side in (away, target, *held_out)]
        probe = Probe.fit(sides[0], sides[1], (sides[2], sides[3]))
        if probe.accuracy > ACCURACY:
            probes[layer] = probe
    if not probes:
        raise SafetyNeuronsError(
            f"No layer's probe is right on more than {ACCURACY:.0%} of the validation prompts. Leave scav out of "
            "--rivals, or use sets that differ more."
        )

    def steer(strength: float) -> ResidualSteering:
        edits = [(layers[layer], partial(probe.perturbed, strength)) for layer, probe in probes.items()]
        fitted = [(layer, one.weight.tolist(), one.bias, one.highest) for layer, one in probes.items()]
        return ResidualSteering(f"scav {toward} {strength} {fitted}", edits, 1)

    changed = len(probes) * away.shape[3]
    return [Candidate(f"{len(probes)} layers", changed, lessons.residual_values, "residual values", steer)]
