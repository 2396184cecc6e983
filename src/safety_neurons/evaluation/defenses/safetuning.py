"""SafeTuning: the run's safety neurons, fine-tuned on the model's own refusals (Zhao, Ke, Huang, EACL 2026)."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from safety_neurons.engines.engine import weights_of
from safety_neurons.evaluation.contracts import Defended, Defense, EvaluationContext, required, respond_with


@dataclass(frozen=True, kw_only=True)
class SafeTuning(Defense):
    """The run's delta; `scale` is how much of it."""

    scale: float = 1.0

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        model = weights_of(context.engine, self.name)
        delta = required(context.artifacts.delta, "delta", self.name)
        delta = delta if self.scale == 1.0 else delta.scale(self.scale)
        tuned = context.under(f"{self.name} {delta.digest}")
        with delta.apply(model):
            yield Defended(tuned.engine, functools.partial(respond_with, tuned))


DEFENSE = SafeTuning(
    name="safetuning",
    source="Zhao, Ke, Huang 2026, Unraveling LLM Jailbreaks Through Safety Knowledge Neurons (EACL)",
    description="Only the safety neurons are fine-tuned; nothing is added when the model answers.",
)
