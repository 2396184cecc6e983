"""Byte-pair encoding with dropout: the same text in other, mostly shorter, tokens (Provilkov et al. 2020)."""

import heapq
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from safety_neurons.errors import CannotRun
from safety_neurons.models.chat import ChatModel


@dataclass(frozen=True)
class BytePairs:
    """A tokenizer's vocabulary, without special tokens, and its merges: how early each pair of tokens becomes one."""

    backend: Tokenizer
    vocabulary: dict[str, int]
    ranks: dict[tuple[str, str], int]

    @classmethod
    def of(cls, model: ChatModel, who: str) -> Self:
        """The merges of the model's tokenizer.

        Raises:
            CannotRun: it is not a byte-pair encoding that can be read.
        """
        fast = model.tokenizer
        spec = json.loads(fast.backend_tokenizer.to_str())["model"] if isinstance(fast, PreTrainedTokenizerFast) else {}
        marks = spec.get("continuing_subword_prefix") or spec.get("end_of_word_suffix")
        if spec.get("type") != "BPE" or marks:
            raise CannotRun(
                f"{who} leaves out merges of a byte-pair encoding, and the tokenizer of {model.name} is none, or one "
                "whose tokens carry marks of their place in a word."
            )
        ranks = {(left, right): rank for rank, (left, right) in reversed(list(enumerate(spec["merges"])))}
        added = fast.get_added_vocab()
        vocabulary = {token: index for token, index in spec["vocab"].items() if token not in added}
        return cls(fast.backend_tokenizer, vocabulary, ranks)

    def encode(self, text: str, start: int, end: int, dropout: float, numbers: random.Random) -> list[int]:
        """The token ids of a text; those of the characters from `start` to `end` are merged with dropout.

        Special tokens stay what they are, and nothing is merged over the borders of what the tokenizer calls a word,
        nor over those of the stretch. The ids decode to the same text as the tokenizer's own.
        """
        encoding = self.backend.encode(text, add_special_tokens=False)
        places = zip(encoding.tokens, encoding.ids, encoding.offsets, encoding.word_ids, strict=True)
        ids: list[int] = []
        for (_, free), tokens in groupby(
            places,
            lambda place: (place[3], start <= place[2][0] and place[2][1] <= end and place[0] in self.vocabulary),
        ):
            group = list(tokens)
            if free:
                symbols = [symbol for token, *_ in group for symbol in self._symbols(token)]
                ids += [self.vocabulary[token] for token in self.merge(symbols, dropout, numbers)]
            else:
                ids += [place[1] for place in group]
        return ids

    def _symbols(self, token: str) -> list[str]:
        """What a token was merged from in the end; a byte that stands for itself (<0x0A>) is one symbol."""
        return list(token) if all(character in self.vocabulary for character in token) else [token]

    def merge(self, symbols: Sequence[str], dropout: float, numbers: random.Random) -> list[str]:
        """Symbols merged pair by pair, the earliest known pair first; each time, each pair is left out by chance."""
        tokens: list[str | None] = list(symbols)
        before, after = list(range(-1, len(tokens) - 1)), list(range(1, len(tokens) + 1))
        queue: list[tuple[int, int, str, str]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right < len(tokens):
                pair = (tokens[left] or "", tokens[right] or "")
                if pair in self.ranks:
                    heapq.heappush(queue, (self.ranks[pair], left, *pair))

        for place in range(len(tokens) - 1):
            offer(place, place + 1)
        skipped = []
        while queue:
            entry = heapq.heappop(queue)
            _, place, left, right = entry
            follower = after[place]
            if tokens[place] != left or follower >= len(tokens) or tokens[follower] != right:
                # One of the two was merged meanwhile.
                continue
            if dropout and numbers.random() < dropout:
                skipped.append(entry)
                continue
            tokens[place], tokens[follower] = left + right, None
            after[place] = after[follower]
            if after[place] < len(tokens):
                before[after[place]] = place
            for other in skipped:
                heapq.heappush(queue, other)
            skipped.clear()
            offer(before[place], place)
            offer(place, after[place])
        return [token for token in tokens if token is not None]
