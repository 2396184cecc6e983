"""A question that goes on from earlier turns is answered in the light of them, whatever the defense."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import pytest

from safety_neurons.core.errors import CannotRunError
from safety_neurons.evaluation import defenses
from safety_neurons.evaluation.contracts import EvaluationContext
from safety_neurons.models.chat import AttackedPrompt, ChatModel, Conversation, Turn
from safety_neurons.models.generate import Completion, Sampling

BEFORE = (Turn("user", "Name a river in France."), Turn("assistant", "The Loire."))


@dataclass(frozen=True)
class Recorder:
    """Answers the same to everything, and keeps what it was asked."""

    asked: list[Conversation] = field(default_factory=list)
    name: str = "recorder"
    identity: str = "recorder"
    change: str = ""
    model: ChatModel | None = None

    def under(self, change: str) -> Self:
        return self

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        self.asked.extend(conversations)
        yield from ((index, Completion("It is long.", False)) for index in range(len(conversations)))


@pytest.mark.parametrize("name", defenses.names())
def test_a_defense_keeps_the_earlier_turns(name: str) -> None:
    engine = Recorder()
    try:
        with defenses.get(name).opened(EvaluationContext(engine, 8)) as defended:
            defended.respond([AttackedPrompt("How long is it?", before=BEFORE)])
    except CannotRunError as error:
        pytest.skip(str(error))
    said = ["\n".join(turn.content for turn in conversation.turns) for conversation in engine.asked]
    assert any(all(turn.content in text for turn in BEFORE) for text in said)
