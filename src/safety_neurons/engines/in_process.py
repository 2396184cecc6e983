"""The engine that is a model in this process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.conversation import Conversation
from safety_neurons.models.generate import BATCH_SIZE, Completion, Sampling, generate
from safety_neurons.storage import fingerprint


@dataclass(frozen=True)
class InProcess:
    """Batches of similar length, halved when memory runs out; `change` names what was done to the model."""

    model: ChatModel
    batch_size: int = BATCH_SIZE
    change: str = ""

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def identity(self) -> str:
        model = self.model
        # A rendered turn shows the template, its options and the system prompt. The batch size, too: who shares a batch
        # with whom decides the rounding.
        turn = model.render("Hello")
        return fingerprint(model.identity, str(model.model.dtype), turn, self.batch_size, self.change)

    def under(self, change: str) -> Self:
        return replace(self, change=f"{self.change}+{change}" if self.change else change)

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        texts = [self.model.render_conversation(conversation) for conversation in conversations]
        return generate(
            self.model, texts, max_new_tokens=max_new_tokens, batch_size=self.batch_size, done=done, sampling=sampling
        )
