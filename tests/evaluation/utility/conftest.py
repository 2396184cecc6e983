"""An engine that says what a test tells it to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import pytest

from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.generate import Completion, Sampling


@dataclass(frozen=True)
class Scripted:
    """Answers as a function of the conversation, like a server; `asked` are the batches that it got."""

    say: Callable[[Conversation], str]
    asked: list[list[Conversation]] = field(default_factory=list)
    name: str = "scripted"
    identity: str = "scripted"
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
        self.asked.append(list(conversations))
        for index, conversation in enumerate(conversations):
            if index not in done:
                yield index, Completion(self.say(conversation), False)


@pytest.fixture
def scripted() -> Callable[[Callable[[Conversation], str]], Scripted]:
    return Scripted
