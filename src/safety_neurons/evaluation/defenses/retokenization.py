"""Retokenization: the user's words are split into other tokens, by byte-pair encoding with dropout.

The text stays the same, and a model can still read it; a suffix that was searched for as tokens falls apart. A model
refuses, and answers, somewhat worse in a tokenization that it was not trained on.
"""

import contextlib
import functools
import heapq
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from tokenizers import Tokenizer
from transformers import BatchEncoding, PreTrainedTokenizerFast

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.engines.engine import weights_of
from safety_neurons.evaluation.contracts import (
    Defended,
    Defense,
    EvaluationContext,
    Response,
    respond_with,
)
from safety_neurons.evaluation.defenses.prompting import seeded
from safety_neurons.models.chat import AttackedPrompt, ChatModel
from safety_neurons.models.context import context_length, too_long
from safety_neurons.models.tokens import left_padded, padding_token


@dataclass(frozen=True)
class BytePairs:
    """A tokenizer's vocabulary, without special tokens, and the rank of each of its merges (Provilkov et al. 2020)."""

    backend: Tokenizer
    vocabulary: dict[str, int]
    ranks: dict[tuple[str, str], int]

    @classmethod
    def of(cls, model: ChatModel, who: str) -> Self:
        """The merges of the model's tokenizer.

        Raises:
            CannotRunError: it is not a byte-pair encoding, or one of a kind that is not supported.
        """
        fast = model.tokenizer
        spec = json.loads(fast.backend_tokenizer.to_str())["model"] if isinstance(fast, PreTrainedTokenizerFast) else {}
        marks = spec.get("continuing_subword_prefix") or spec.get("end_of_word_suffix")
        if spec.get("type") != "BPE" or marks:
            raise CannotRunError(
                f"{who} needs a byte-pair encoding without marks for a token's place in a word, which the tokenizer of "
                f"{model.name} is not."
            )
        ranks = {(left, right): rank for rank, (left, right) in reversed(list(enumerate(spec["merges"])))}
        added = fast.get_added_vocab()
        vocabulary = {token: index for token, index in spec["vocab"].items() if token not in added}
        return cls(fast.backend_tokenizer, vocabulary, ranks)

    def encode(self, text: str, start: int, end: int, dropout: float, numbers: random.Random) -> list[int]:
        """The token ids of a text; the characters from `start` to `end` are merged with dropout.

        Special tokens are kept, and nothing is merged across the borders of the stretch or of the tokenizer's words.
        The ids decode to the same text as the tokenizer's own.
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
        """The symbols that a token was merged from; a byte token such as <0x0A> is one symbol."""
        return list(token) if all(character in self.vocabulary for character in token) else [token]

    def merge(self, symbols: Sequence[str], dropout: float, numbers: random.Random) -> list[str]:
        """Symbols merged pair by pair in order of rank; at each step, a pair is skipped with probability `dropout`."""
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
                # One of the two has been merged since.
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


# Text that no template contains.
_PROBE = "Xq7probe7qX"


@dataclass(frozen=True, kw_only=True)
class Retokenization(Defense):
    """Each merge of the model's byte-pair encoding is skipped with probability `dropout`, anew at each step.

    The choice follows from the context's seed and the prompt. Xu et al. 2024 (SafeDecoding) use a dropout of 0.2, and
    write spaces between the subwords of another vocabulary; here the text itself is unchanged.
    """

    dropout: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise SafetyNeuronsError(f"{self.name}: dropout must be between 0 and 1, not {self.dropout}.")

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        model = weights_of(context.engine, self.name)
        pairs = BytePairs.of(model, self.name)
        changed = context.under(f"retokenization {self.dropout} {context.seed}")
        # An attack that asks the engine itself gets the tokenizer's own tokens.
        yield Defended(context.engine, functools.partial(self._respond, changed, model, pairs))

    def _respond(
        self, context: EvaluationContext, model: ChatModel, pairs: BytePairs, prompts: Sequence[AttackedPrompt]
    ) -> list[Response]:
        ids = {}
        for prompt in prompts:
            text, start, end = rendered(model, prompt)
            numbers = seeded(context.seed, "retokenization", prompt.user)
            ids[text] = pairs.encode(text, start, end, self.dropout, numbers)
        # Split words are more tokens than the tokenizer's own.
        unfit = too_long(list(map(len, ids.values())), context.answer_tokens, context_length(model.model.config))
        not_run = {text: unfit[index] for index, text in enumerate(ids) if index in unfit}
        texts = [rendered(model, prompt)[0] for prompt in prompts]
        fitting = [prompt for prompt, text in zip(prompts, texts, strict=True) if text not in not_run]
        with encoded_as(model, ids):
            answered = iter(respond_with(context, fitting))
        return [
            Response("", outcome="not run", reason=not_run[text]) if text in not_run else next(answered)
            for text in texts
        ]


def rendered(model: ChatModel, prompt: AttackedPrompt) -> tuple[str, int, int]:
    """A prompt in the model's template, with the first character of the user's words and the one after the last.

    Raises:
        SafetyNeuronsError: the template writes different text around different prompts.
    """
    head, _, tail = model.render(_PROBE).partition(_PROBE)
    text = model.render_conversation(prompt.conversation)
    end = len(text) - len(prompt.prefill) - len(tail)
    if not (text.startswith(head) and text.startswith(tail, end) and len(head) <= end):
        raise SafetyNeuronsError(
            f"The chat template of {model.name} does not write the same text around every prompt, so the user's words "
            "cannot be located. Leave out the defense retokenization for this model."
        )
    return text, len(head), end


@contextlib.contextmanager
def encoded_as(model: ChatModel, ids: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """While the context is open, the model encodes these rendered texts as these ids, and can encode no others."""

    def encode(texts: Sequence[str]) -> BatchEncoding:
        return left_padded([ids[text] for text in texts], padding_token(model)).to(model.device)

    # An attribute of the instance takes precedence over the method of its class.
    vars(model)["encode"] = encode
    try:
        yield
    finally:
        del vars(model)["encode"]


DEFENSE = Retokenization(
    name="retokenization",
    source="Jain et al. 2023, Baseline Defenses for Adversarial Attacks Against Aligned Language Models "
    "(arXiv:2309.00614), with BPE-dropout (Provilkov et al. 2020); dropout 0.4",
    description="The model reads the user's words in randomly chosen other tokens.",
)
