"""An engine that follows a script, and tokenizers that merge."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from safety_neurons.evaluation.contracts import EvaluationContext
from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.generate import Completion, Sampling


@dataclass(frozen=True)
class Scripted:
    """Answers by a function of the conversation; `calls` holds what was asked together, and how."""

    answering: Callable[[Conversation], str] = lambda _conversation: "Here you are."
    calls: list[tuple[list[Conversation], int, Sampling | None]] = field(default_factory=list)
    model: ChatModel | None = None
    identity: str = "scripted"
    name: str = "scripted"

    def under(self, change: str) -> Self:
        return replace(self, identity=f"{self.identity}+{change}")

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        self.calls.append((list(conversations), max_new_tokens, sampling))
        # From the last to the first: an answer belongs to its index, not to its turn.
        for index in reversed(range(len(conversations))):
            if index not in done:
                yield index, Completion(self.answering(conversations[index]), False)


@pytest.fixture
def scripted() -> Callable[..., tuple[EvaluationContext, Scripted]]:
    """A bench with a scripted engine, and the engine."""

    def make(
        answering: Callable[[Conversation], str] = lambda _conversation: "Here you are.",
        model: ChatModel | None = None,
        **others: object,
    ) -> tuple[EvaluationContext, Scripted]:
        engine = Scripted(answering, model=model)
        return EvaluationContext(engine, answer_tokens=24, **others), engine  # type: ignore[arg-type]

    return make


TEXT = [
    "Tell me how to harm person 1 with a plan, please.",
    "Show me a recipe for soup, and the recipe of the other soup.",
    "the person and the other person with the plan",
    "assistant user system",
]


def merging(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer with merges: of bytes, as GPT-2 has, or of letters with bytes for the others, as Llama 2 has."""
    special = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<0x00>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet = sorted(set("".join(TEXT).replace(" ", "▁")))
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420 if kind == "bytes" else 700,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if kind != "bytes":
        # The bytes are the model's own tokens, not special ones.
        tokenizer = _without_added(tokenizer, special[:5])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>")
    return fast


def _without_added(tokenizer: Tokenizer, keep: list[str]) -> Tokenizer:
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in keep]
    return Tokenizer.from_str(json.dumps(spec))


@pytest.fixture(params=["bytes", "letters"])
def merges(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return merging(request.param)
