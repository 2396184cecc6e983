"""Answers under many conditions: what all conditions have in common of a prompt is computed once.

Calibration changes only a prompt's last positions, so the keys and values of all before them are always the same.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import cache_of, forward
from safety_neurons.models.generate import Completion, batches_by_length, complete, generate


@dataclass(frozen=True)
class PrefixCache:
    """The caches of batches of rendered prompts, without their last tokens; None where a model keeps something else."""

    caches: dict[tuple[str, ...], Any]

    @classmethod
    def read(cls, model: ChatModel, sets: Sequence[Sequence[str]], positions: int, batch_size: int) -> Self:
        """Read the beginnings of several sets of prompts, up to their last `positions` tokens.

        The model must not be calibrated meanwhile: what is the end of a beginning is not the end of the prompt.
        """
        caches = {}
        for texts in sets:
            for batch in batches_by_length(texts, batch_size):
                group = tuple(texts[index] for index in batch)
                caches[group] = _beginnings(model, group, positions)
        return cls(caches)

    def cache(self, texts: Sequence[str]) -> Any:
        """A copy of a batch's cache, to be written to; None where none is kept of just this batch."""
        return copy.deepcopy(self.caches.get(tuple(texts)))

    def generate(
        self, model: ChatModel, texts: Sequence[str], *, max_new_tokens: int, batch_size: int, done: frozenset[int]
    ) -> Iterator[tuple[int, Completion]]:
        """What `models.generate.generate` gives, up to rounding."""
        for batch in batches_by_length(texts, batch_size):
            if done.issuperset(batch):
                continue
            group = tuple(texts[index] for index in batch)
            for number, answer in self._answer(model, group, max_new_tokens):
                if batch[number] not in done:
                    yield batch[number], answer

    def _answer(self, model: ChatModel, texts: tuple[str, ...], tokens: int) -> list[tuple[int, Completion]]:
        try:
            return list(enumerate(complete(model, texts, tokens, cache=self.cache(texts))))
        except (torch.OutOfMemoryError, MemoryError):
            self.caches.clear()
            return list(generate(model, texts, max_new_tokens=tokens, batch_size=max(1, len(texts) // 2)))


def _beginnings(model: ChatModel, texts: Sequence[str], positions: int) -> Any:
    """The keys and values of a batch's beginnings, where the model keeps such and every text has a beginning."""
    inputs = model.encode(texts)
    end = inputs["input_ids"].shape[1] - positions
    if int(inputs["attention_mask"].sum(1).min()) <= positions:
        return None
    beginnings = {name: inputs[name][:, :end] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        cache = cache_of(forward(model.model, beginnings, use_cache=True))
    return cache if cache is not None and cache.get_seq_length() == end else None
