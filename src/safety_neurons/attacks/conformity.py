"""Conformity calibration: the run's safety neurons are moved to where harmless requests have them.

Whoever has the weights can do it, and every layer that the model was made safe with stays in place: it tests whether a
defence survives the loss of the neurons that carry refusals.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from safety_neurons.attacks.attack import Attack, AttackedPrompt
from safety_neurons.calibrate.calibration import calibrate
from safety_neurons.calibrate.dose import digest
from safety_neurons.defenses.defense import Defended
from safety_neurons.engines.bench import Bench
from safety_neurons.engines.engine import weights_of
from safety_neurons.errors import CannotRun
from safety_neurons.find.neuron_set import NeuronSet


@dataclass(frozen=True, kw_only=True)
class Conformity(Attack):
    """`alpha` is the strength of the calibration; the run's own where it is left out."""

    alpha: float | None = None

    @contextlib.contextmanager
    def surrounding(self, bench: Bench) -> Iterator[Bench]:
        model = weights_of(bench.engine, self.name)
        neurons = bench.need("neurons", self.name)
        assert isinstance(neurons, NeuronSet)
        if neurons.directions is None:
            raise CannotRun(f"{self.name} needs the directions of the run's neurons, and there are none here.")
        alpha = bench.made.alpha_conformity if self.alpha is None else self.alpha
        with calibrate(model, neurons, toward="conformity", alpha=alpha):
            yield bench.under(f"conformity {digest(neurons)} alpha={alpha}")

    def prompts(self, requests: Sequence[str], defended: Defended, bench: Bench) -> Sequence[AttackedPrompt]:
        return [AttackedPrompt(request) for request in requests]


ATTACK = Conformity(
    name="conformity",
    source="Zhao, Ke, Huang 2026, Unraveling LLM Jailbreaks Through Safety Knowledge Neurons (EACL)",
    description="Moves the safety neurons' activations towards those of harmless requests.",
    budget="the weights, and neurons that were found on them",
    sees_defended_model=True,
)
