"""A tiny model without a defense, and the bench that it is tested on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from safety_neurons.engines.engine import InProcess
from safety_neurons.evaluation.contracts import Defended, EvaluationContext
from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.generate import Completion, Sampling


@pytest.fixture
def make_bench(model: ChatModel) -> Callable[..., EvaluationContext]:
    def make(**options: Any) -> EvaluationContext:
        return EvaluationContext(InProcess(options.pop("model", model)), answer_tokens=4, **options)

    return make


@pytest.fixture
def context(make_bench: Callable[..., EvaluationContext]) -> EvaluationContext:
    return make_bench()


@pytest.fixture
def defended(context: EvaluationContext) -> Defended:
    """No attack asks a defense for answers."""
    return Defended(context.engine, lambda _prompts: pytest.fail("asked the defense"))


@dataclass(frozen=True)
class Interpreter:
    """An engine without weights that gives the answers it was told, by a word of the request."""

    answers: dict[str, Completion]
    asked: list[str] = field(default_factory=list)
    name: str = "interpreter"
    identity: str = "interpreter"
    model: None = None

    def under(self, change: str) -> "Interpreter":
        return self

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        for index, conversation in enumerate(conversations):
            self.asked.append(conversation.turns[-1].content)
            yield index, next(answer for word, answer in self.answers.items() if word in self.asked[-1])


@pytest.fixture
def make_interpreter() -> Callable[[dict[str, Completion]], Interpreter]:
    return Interpreter
