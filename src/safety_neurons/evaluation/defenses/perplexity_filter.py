"""Perplexity filter: a prompt that the model finds too unlikely as a text is not answered.

Suffixes that were searched for token by token are gibberish and stand out; attacks in plain words do not. Prompts in
rare languages, or in code, may be blocked with them.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.engines.engine import weights_of
from safety_neurons.evaluation.contracts import Defended, Defense, EvaluationContext, Response, respond_unless
from safety_neurons.models.chat import AttackedPrompt, ChatModel
from safety_neurons.models.generate import in_batches
from safety_neurons.models.likelihood import READ_AT_ONCE, nll_by_token


@dataclass(frozen=True, kw_only=True)
class PerplexityFilter(Defense):
    """Blocks a prompt whose user's turn has a perplexity above `threshold`: where none is given, the largest one among
    the harmful requests to learn from, as Jain et al. set it.

    With `window`, the perplexity is that of the least likely stretch of so many tokens (10 in Jain et al.), of the
    prompt and of the requests that set the threshold. The model itself reads the turn alone, without its template;
    a turn without a second token has no perplexity and passes. Alon and Kamfonas let GPT-2 read, and classify by
    perplexity and length together.
    """

    threshold: float | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if (self.window is not None and self.window < 1) or (self.threshold is not None and self.threshold <= 0):
            raise SafetyNeuronsError(f"{self.name}: a threshold is above 0, and a window has at least 1 token.")

    def prepared(self, context: EvaluationContext) -> Self:
        if self.threshold:
            return self
        return replace(self, threshold=math.exp(self._largest(weights_of(context.engine, self.name), context.harmful)))

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        model = weights_of(context.engine, self.name)
        limit = math.log(self.threshold) if self.threshold else self._largest(model, context.harmful)

        def respond(prompts: Sequence[AttackedPrompt]) -> list[Response]:
            read = self.nll(model, [prompt.user for prompt in prompts])
            return respond_unless([nats is not None and nats > limit for nats in read], context, prompts)

        yield Defended(context.engine, respond)

    def _largest(self, model: ChatModel, requests: Sequence[str]) -> float:
        read = [nats for nats in self.nll(model, requests) if nats is not None]
        if not read:
            raise CannotRunError(
                f"{self.name} takes its threshold from harmful requests to learn from, and there are none here. Give "
                f"{self.name}:threshold=NUMBER."
            )
        return max(read)

    def nll(self, model: ChatModel, texts: Sequence[str]) -> list[float | None]:
        """The logarithm of each text's perplexity, with a window that of its least likely one; None without tokens."""

        def read(batch: list[int]) -> list[float | None]:
            # Not as a turn: as a text, which begins as the tokenizer begins texts.
            encoded = model.tokenizer(
                [texts[index] for index in batch], return_tensors="pt", padding=True, padding_side="left"
            )
            return [self._summary(nats) for nats in nll_by_token(model, encoded.to(model.device))]

        return in_batches(texts, READ_AT_ONCE, read)

    def _summary(self, nats: Tensor) -> float | None:
        if not len(nats):
            return None
        return max(float(part.mean()) for part in nats.split(self.window or len(nats)))


DEFENSE = PerplexityFilter(
    name="perplexity-filter",
    source="Alon, Kamfonas 2023, Detecting Language Model Attacks with Perplexity (arXiv:2308.14132); threshold of "
    "Jain et al. 2023 (arXiv:2309.00614)",
    description="Blocks prompts that the model finds too unlikely as texts.",
)
