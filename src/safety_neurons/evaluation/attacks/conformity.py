"""Conformity calibration: moves the run's safety neurons to their activations on harmless requests.

It takes access to the weights. Everything that makes the model safe stays in place, so the attack tests whether a
defense survives the loss of the neurons that carry refusals.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from safety_neurons.calibration.calibration import calibrate, digest
from safety_neurons.core.errors import CannotRunError
from safety_neurons.engines.engine import weights_of
from safety_neurons.evaluation.contracts import Attack, Defended, EvaluationContext, required
from safety_neurons.models.chat import AttackedPrompt


@dataclass(frozen=True, kw_only=True)
class Conformity(Attack):
    """`alpha` is the strength of the calibration. Default: the run's."""

    alpha: float | None = None

    @contextlib.contextmanager
    def surrounding(self, context: EvaluationContext) -> Iterator[EvaluationContext]:
        model = weights_of(context.engine, self.name)
        neurons = required(context.artifacts.neurons, "neurons", self.name)
        if neurons.directions is None:
            raise CannotRunError(f"{self.name} needs the directions of the run's neurons, and there are none here.")
        alpha = context.artifacts.alpha_conformity if self.alpha is None else self.alpha
        with calibrate(model, neurons, toward="conformity", alpha=alpha):
            yield context.under(f"conformity {digest(neurons)} alpha={alpha}")

    def prompts(
        self, requests: Sequence[str], defended: Defended, context: EvaluationContext
    ) -> Sequence[AttackedPrompt]:
        return [AttackedPrompt(request) for request in requests]


ATTACK = Conformity(
    name="conformity",
    source="Zhao, Ke, Huang 2026, Unraveling LLM Jailbreaks Through Safety Knowledge Neurons (EACL)",
    description="Moves the safety neurons' activations toward those of harmless requests.",
    budget="the weights, and neurons that were found on them",
    sees_defended_model=True,
    changes_model=True,
)
