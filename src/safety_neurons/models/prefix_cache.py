"""Key-value caches of prompt prefixes, for answering the same prompts under many conditions.

Calibration changes a prompt's last positions only, so the keys and values of all earlier positions stay the same.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import cache_of, forward
from safety_neurons.models.generate import Completion, batches_by_length, complete, generate, streamed


@dataclass(frozen=True)
class PrefixCache:
    """Caches of batches of rendered prompts without their last tokens; None for a batch that cannot be cached."""

    caches: dict[tuple[str, ...], Any]

    @classmethod
    def read(cls, model: ChatModel, sets: Sequence[Sequence[str]], positions: int, batch_size: int) -> Self:
        """Run the prefixes of several sets of prompts, all but their last `positions` tokens.

        The model must not be calibrated meanwhile, as the end of a prefix is not the end of the prompt.
        """
        groups = [tuple(texts[i] for i in batch) for texts in sets for batch in batches_by_length(texts, batch_size)]
        return cls({group: _prefix_cache(model, group, positions) for group in groups})

    def cache(self, texts: Sequence[str]) -> Any:
        """A copy of the cache of exactly this batch, which may be modified; None if there is none."""
        return copy.deepcopy(self.caches.get(tuple(texts)))

    def generate(
        self, model: ChatModel, texts: Sequence[str], *, max_new_tokens: int, batch_size: int, done: frozenset[int]
    ) -> Iterator[tuple[int, Completion]]:
        """Like `models.generate.generate`, up to rounding."""

        def answer(group: Sequence[str]) -> list[Completion]:
            try:
                return complete(model, group, max_new_tokens, cache=self.cache(group))
            except (torch.OutOfMemoryError, MemoryError):
                self.caches.clear()
            half = max(1, len(group) // 2)
            answers = dict(generate(model, group, max_new_tokens=max_new_tokens, batch_size=half))
            return [answers[index] for index in range(len(group))]

        return streamed(model, texts, answer, max_new_tokens=max_new_tokens, batch_size=batch_size, done=done)


def _prefix_cache(model: ChatModel, texts: Sequence[str], positions: int) -> Any:
    """The cache of a batch's prefixes; None if the model keeps something else or a text has no prefix."""
    inputs = model.encode(texts)
    end = inputs["input_ids"].shape[1] - positions
    if int(inputs["attention_mask"].sum(1).min()) <= positions:
        return None
    prefixes = {name: inputs[name][:, :end] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        cache = cache_of(forward(model.model, prefixes, use_cache=True))
    return cache if cache is not None and cache.get_seq_length() == end else None
