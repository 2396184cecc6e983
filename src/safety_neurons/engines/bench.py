"""What an attack and a defence work with."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from safety_neurons.calibrate.guard import Guard
from safety_neurons.engines.engine import Engine, answers
from safety_neurons.errors import CannotRun
from safety_neurons.find.neuron_set import NeuronSet
from safety_neurons.models.conversation import Conversation
from safety_neurons.models.generate import Completion, Sampling
from safety_neurons.progress import Listener, Silence
from safety_neurons.tune.corpus import Corpus
from safety_neurons.tune.delta import NeuronDelta


@dataclass(frozen=True)
class Artefacts:
    """What a run made of the model under test; None for what it has not made."""

    neurons: NeuronSet | None = None
    guard: Guard | None = None
    delta: NeuronDelta | None = None
    corpus: Corpus | None = None
    alpha_conformity: float = 4.0


@dataclass(frozen=True)
class Bench:
    """The model under test, and what belongs to its test.

    `harmful` and `benign` are requests to learn from, never those that are tested. What is trained is kept in `folder`;
    `copies` has local copies of public sets.
    """

    engine: Engine
    answer_tokens: int
    seed: int = 0
    harmful: Sequence[str] = ()
    benign: Sequence[str] = ()
    made: Artefacts = Artefacts()
    folder: Path | None = None
    copies: Path | None = None
    listener: Listener = field(default_factory=Silence)

    def under(self, change: str) -> Self:
        """The bench while the model is changed as `change` names it."""
        return replace(self, engine=self.engine.under(change))

    def answers(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> list[Completion]:
        """Answers of the usual length, unless another is given."""
        return answers(
            self.engine, conversations, max_new_tokens=max_new_tokens or self.answer_tokens, sampling=sampling
        )

    def need(self, what: str, who: str) -> object:
        """The run's artefact called `what`.

        Raises:
            CannotRun: there is none.
        """
        found = getattr(self.made, what)
        if found is None:
            raise CannotRun(f"{who} needs the {what} of a run, and there is none here.")
        return found
