"""Perplexity filter: a prompt that is too unlikely as a text is not answered.

Suffixes that were searched for token by token are gibberish and stand out; attacks in plain words do not. Prompts in
rare languages or in code may be blocked, too.
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
    """Blocks a prompt if the perplexity of the user's turn is above `threshold`.

    Default: the largest perplexity of the harmful training requests (Jain et al.). With `window`, the perplexity is
    that of the least likely stretch of this many tokens (10 in Jain et al.), in prompts and training requests alike.
    The defended model reads the turn without its template; a turn of one token has no perplexity and passes. Alon and
    Kamfonas use GPT-2, and classify by perplexity and length together.
    """

    threshold: float | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if (self.window is not None and self.window < 1) or (self.threshold is not None and self.threshold <= 0):
            raise SafetyNeuronsError(f"{self.name}: threshold must be above 0, and window at least 1 token.")

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
                f"{self.name} takes its threshold from harmful training requests, and there are none here. Set it: "
                f"{self.name}:threshold=NUMBER."
            )
        return max(read)

    def nll(self, model: ChatModel, texts: Sequence[str]) -> list[float | None]:
        """The log-perplexity of each text, or of its least likely window; None without tokens, or with too many."""
        unfit = model.too_long(texts, new_tokens=1)

        def read(batch: list[int]) -> list[float | None]:
            # Read as a plain text, with the tokenizer's own special tokens.
            encoded = model.encode_plain([fitting[index] for index in batch])
            return [self._summary(nats) for nats in nll_by_token(model, encoded)]

        fitting = [text for index, text in enumerate(texts) if index not in unfit]
        found = iter(in_batches(fitting, READ_AT_ONCE, read))
        return [None if index in unfit else next(found) for index in range(len(texts))]

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
