"""What an engine is: conversations in, answers out, whoever computes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, Self, TypeVar

from safety_neurons.errors import CannotRun
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.conversation import Conversation
from safety_neurons.models.generate import Completion, Sampling


class Engine(Protocol):
    """Answers conversations. Its answers are a function of `identity` and of what is asked, as far as it can tell."""

    @property
    def name(self) -> str:
        """What a table calls it."""
        ...

    @property
    def identity(self) -> str:
        """The fingerprint of everything that answers depend on besides the conversation and the sampling."""
        ...

    @property
    def model(self) -> ChatModel | None:
        """The model, where its weights are in this process."""
        ...

    def under(self, change: str) -> Self:
        """The same engine while the model is changed (tuned, guarded, calibrated) as `change` names it, uniquely."""
        ...

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, what is written after the prefill) for what is not `done`, as it is finished, in any order.

        Greedy unless `sampling` says otherwise.
        """
        ...


Inner = TypeVar("Inner", bound=Engine)


@dataclass(frozen=True)
class Around(Generic[Inner]):
    """What engines around another one share: they answer in their own way, and are otherwise the one inside."""

    engine: Inner

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def identity(self) -> str:
        return self.engine.identity

    @property
    def model(self) -> ChatModel | None:
        return self.engine.model

    def under(self, change: str) -> Self:
        return replace(self, engine=self.engine.under(change))


def answers(
    engine: Engine, conversations: Sequence[Conversation], *, max_new_tokens: int, sampling: Sampling | None = None
) -> list[Completion]:
    """What is written after each conversation's prefill, in the order of the conversations."""
    found = dict(engine.answer(conversations, max_new_tokens=max_new_tokens, sampling=sampling))
    return [found[index] for index in range(len(conversations))]


def weights_of(engine: Engine, who: str) -> ChatModel:
    """The engine's model.

    Raises:
        CannotRun: it is behind a server.
    """
    if engine.model is None:
        raise CannotRun(f"{who} works on the model's weights, and {engine.name} gives text only.")
    return engine.model
