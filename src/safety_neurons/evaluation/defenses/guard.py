"""The run's guard: prompts that the early safety neurons find harmful are answered by a model calibrated to refuse.

It is decided while the prompt is read, so that it costs next to nothing, and what is not flagged is answered with the
same bits. An attack that hides the harm from the early layers passes.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from safety_neurons.calibration.guard import guard
from safety_neurons.engines.engine import weights_of
from safety_neurons.evaluation.contracts import Defended, Defense, EvaluationContext, required, respond_with


@dataclass(frozen=True, kw_only=True)
class GuardDefense(Defense):
    """The fitted guard, at its own rate and dose where no others are given."""

    false_positive_rate: float | None = None
    alpha: float | None = None

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        model = weights_of(context.engine, self.name)
        fitted = required(context.artifacts.guard, "guard", self.name)
        if self.false_positive_rate is not None:
            fitted = fitted.at(self.false_positive_rate)
        if self.alpha is not None:
            fitted = replace(fitted, alpha=self.alpha)
        guarded = context.under(f"guard {fitted.digest}")
        with guard(model, fitted):
            yield Defended(guarded.engine, functools.partial(respond_with, guarded))


DEFENSE = GuardDefense(
    name="guard",
    source="Zhao, Ke, Huang 2026, Unraveling LLM Jailbreaks Through Safety Knowledge Neurons (EACL): its calibration, "
    "on the prompts that a detector on the same neurons flags",
    description="Safety neurons read the prompt, and push the model to refuse where they find harm.",
)
