"""The run's guard: prompts that the early safety neurons find harmful are answered by a model calibrated to refuse.

It is decided while the prompt is read, so that it costs next to nothing, and what is not flagged is answered with the
same bits. An attack that hides the harm from the early layers passes.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from safety_neurons.calibrate.guard import Guard, guard
from safety_neurons.defenses.defense import Defended, Defense, respond_with
from safety_neurons.engines.bench import Bench
from safety_neurons.engines.engine import weights_of


@dataclass(frozen=True, kw_only=True)
class GuardDefense(Defense):
    """The fitted guard, at its own rate and dose where no others are given."""

    false_positive_rate: float | None = None
    alpha: float | None = None

    @contextlib.contextmanager
    def opened(self, bench: Bench) -> Iterator[Defended]:
        model = weights_of(bench.engine, self.name)
        fitted = bench.need("guard", self.name)
        assert isinstance(fitted, Guard)
        if self.false_positive_rate is not None:
            fitted = fitted.at(self.false_positive_rate)
        if self.alpha is not None:
            fitted = replace(fitted, alpha=self.alpha)
        guarded = bench.under(f"guard {fitted.digest}")
        with guard(model, fitted):
            yield Defended(guarded.engine, functools.partial(respond_with, guarded))


DEFENSE = GuardDefense(
    name="guard",
    source="Zhao, Ke, Huang 2026, Unraveling LLM Jailbreaks Through Safety Knowledge Neurons (EACL): its calibration, "
    "on the prompts that a detector on the same neurons flags",
    description="Safety neurons read the prompt, and push the model to refuse where they find harm.",
)
