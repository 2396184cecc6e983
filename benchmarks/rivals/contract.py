"""What a rival is: candidates at a strength that is still to be chosen, learned from training prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rivals.residual import read_residuals
from safety_neurons.calibration.config import Toward
from safety_neurons.experiments.intervention import Steering
from safety_neurons.models.neurons.trace import decoder_layers
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.find import score_neurons_of


@dataclass(frozen=True)
class Candidate:
    """One variant of a rival (a layer, a size); `changed` of the model's `of` values of this kind are changed."""

    variant: str
    changed: int
    of: int
    unit: str
    steer: Callable[[float], Steering]

    @property
    def share(self) -> float:
        return self.changed / self.of


@dataclass(frozen=True)
class Lessons:
    """What the rivals learn from.

    Outputs of all layers at the prompts' last positions, float32 [prompts, layers, positions, hidden]: of the training
    prompts, and of the validation prompts, which the probes are checked on. `layers` are the layers to try.
    """

    run: RunContext
    scored: ScoredNeurons
    harmful: Tensor
    benign: Tensor
    held_out: tuple[Tensor, Tensor]
    layers: Sequence[int]
    percents: Sequence[float]

    @classmethod
    def read(cls, run: RunContext, layers: int, percents: Sequence[float]) -> "Lessons":
        """Read training and validation prompts. `layers` are spread over the middle 60% of the depth."""
        depth, positions = len(decoder_layers(run.model.model)), max(1, run.model.template_tail)
        tried = torch.linspace(0.2 * depth, 0.8 * depth, layers).round().long().clamp(0, depth - 1)
        limits = {"train": run.settings.find.prompts, "validation": None}
        read = []
        for split, limit in limits.items():
            for name in ("harmful", "benign"):
                prompts = [prompt.text for prompt in run.split(name, split, limit)]
                with run.listener.task(f"reading the residual stream ({name}, {split})", 1) as advance:
                    read.append(read_residuals(run.model, prompts, positions, run.settings.batch_size))
                    advance(1)
        return cls(
            run, score_neurons_of(run), read[0], read[1], (read[2], read[3]), sorted({*tried.tolist()}), percents
        )

    @property
    def residual_values(self) -> int:
        """Number of values of the residual stream after all layers."""
        return self.harmful.shape[1] * self.harmful.shape[3]


# The candidates of a rival toward one side.
Rival = Callable[[Lessons, Toward], list[Candidate]]
