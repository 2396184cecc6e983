"""Answers under many conditions: what all conditions have in common of a prompt is computed once.

Calibration changes only a prompt's last positions, so the keys and values of all before them are always the same.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import Completion, batches_by_length, complete, generate


@dataclass(frozen=True)
class KeptPrompts:
    """The caches of batches of prompts, without their last `positions` tokens.

    The first batch of prompts must be answered outside of any calibration that reaches further back.
    """

    positions: int
    caches: dict[tuple[str, ...], Any] = field(default_factory=dict)

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
            if texts not in self.caches:
                self.caches[texts] = self._read(model, texts)
            # Generating writes into the cache.
            cache = copy.deepcopy(self.caches[texts])
            return list(enumerate(complete(model, texts, tokens, past_key_values=cache)))
        except (torch.OutOfMemoryError, MemoryError):
            self.caches.clear()
            return list(generate(model, texts, max_new_tokens=tokens, batch_size=max(1, len(texts) // 2)))

    def _read(self, model: ChatModel, texts: Sequence[str]) -> Any:
        """The keys and values of the texts' beginnings, or None for models that keep something else."""
        inputs = model.encode(texts)
        lengths = inputs["attention_mask"].sum(1)
        end = inputs["input_ids"].shape[1] - self.positions
        if int(lengths.min()) <= self.positions:
            return None
        beginnings = {name: inputs[name][:, :end] for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            cache = getattr(forward(model.model, beginnings, use_cache=True), "past_key_values", None)
        return cache if cache is not None and cache.get_seq_length() == end else None
