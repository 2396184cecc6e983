"""A model with its tokenizer and chat template, and the conversations it answers."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import fingerprint
from safety_neurons.models.context import context_length, too_long
from safety_neurons.models.generate import generate
from safety_neurons.models.model_files import is_panic
from safety_neurons.models.neurons.discovery import Coverage, find_neurons
from safety_neurons.models.neurons.hook_points import HookPoint, device_of
from safety_neurons.models.quoting import encodable
from safety_neurons.models.reasoning import may_think, with_prefill
from safety_neurons.models.template import ChatTemplate, Turn
from safety_neurons.models.tokens import left_padded, padding_token

__all__ = ["AttackedPrompt", "ChatModel", "Conversation", "Turn"]


@dataclass(frozen=True)
class AttackedPrompt:
    """An attack's input to the model: the user's turn and the prefill of the assistant's turn (may be empty).

    The answer to judge is `prefill` followed by what the model writes. `before` holds the earlier turns of the
    conversation, which defenses keep.
    """

    user: str
    prefill: str = ""
    before: tuple[Turn, ...] = ()

    @property
    def conversation(self) -> "Conversation":
        """The conversation that sends it unchanged."""
        return Conversation.of(self.user, self.prefill, before=self.before)


@dataclass(frozen=True)
class Conversation:
    """Turns, the last one the user's, and the prefill of the answer (may be empty)."""

    turns: tuple[Turn, ...]
    prefill: str = ""

    @classmethod
    def of(cls, user: str, prefill: str = "", system: str | None = None, before: tuple[Turn, ...] = ()) -> Self:
        """A user turn after an optional system prompt and earlier turns."""
        first = () if system is None else (Turn("system", system),)
        return cls((*first, *before, Turn("user", user)), prefill)


# Texts with different last tokens: the tokens that their rendered forms share at the end belong to the template.
_ENDS = ("word", "Why?", "12", "Go on.")


@dataclass(frozen=True)
class ChatModel:
    """A causal language model with its tokenizer.

    `identity` names the exact weights (a checksum or a commit). `template_options` are passed to the chat template,
    for example `{"enable_thinking": False}`. A thought before an answer may have `reasoning_tokens` tokens besides
    those of the answer. For `write_matrices` and `allow_partial` see `find_neurons`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    identity: str
    system: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    write_matrices: str | None = None
    allow_partial: bool = False
    reasoning_tokens: int = 1024

    @functools.cached_property
    def _found(self) -> tuple[tuple[HookPoint, ...], Coverage]:
        return find_neurons(self.model, write_matrices=self.write_matrices, allow_partial=self.allow_partial)

    @property
    def hook_points(self) -> tuple[HookPoint, ...]:
        """The MLP neurons of every layer, found and checked on first use."""
        return self._found[0]

    @property
    def coverage(self) -> Coverage:
        """How much of the model's MLPs the hook points cover."""
        return self._found[1]

    @functools.cached_property
    def may_think(self) -> bool:
        """Whether the model may write a thought before its answer."""
        return may_think(self)

    @functools.cached_property
    def parameters(self) -> int:
        """Number of weights; tied weights count once."""
        # Not a sum over the tensors: 4-bit tensors hold two weights per byte.
        return int(self.model.num_parameters())

    @property
    def device(self) -> torch.device:
        """The device of the inputs; layers of a large model may be on other devices."""
        return device_of(self.model.get_input_embeddings())

    @functools.cached_property
    def template_tail(self) -> int:
        """Number of template tokens between the user's text and the answer."""
        first, *others = (self.tokenizer(self.render(text), add_special_tokens=False)["input_ids"] for text in _ENDS)
        same = 0
        while all(same < len(other) and other[-1 - same] == first[-1 - same] for other in others):
            same += 1
        return same

    @functools.cached_property
    def turn_end(self) -> int | None:
        """The token that the chat template ends the assistant's turn with; None if that is not a token of its own."""
        after = self.template.turn_end().strip()
        ids = self.tokenizer(after, add_special_tokens=False)["input_ids"]
        return ids[0] if ids and ids[0] in self.tokenizer.added_tokens_decoder else None

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The chat template with its options."""
        return ChatTemplate(self.tokenizer, self.name, self.template_options)

    @property
    def rendering(self) -> str:
        """Hash of all that prompts are rendered with: the template, its options and the system prompt.

        Raises:
            SafetyNeuronsError: the tokenizer has no chat template, or the template cannot render a user turn.
        """
        return fingerprint(self.template.text, dict(self.template_options), self.system, self.render("Hello"))

    def with_system(self, system: str | None) -> Self:
        """The same model with another system prompt."""
        return replace(self, system=system)

    def render(self, user: str, prefill: str = "") -> str:
        """Render one user turn and the prefill of the answer with the chat template.

        Raises:
            SafetyNeuronsError: the tokenizer has no chat template, or the template cannot render a user turn.
        """
        return self.render_conversation(Conversation.of(user, prefill))

    def render_conversation(self, conversation: Conversation) -> str:
        """Render a conversation with the chat template; without a system turn, `self.system` is used.

        Raises:
            SafetyNeuronsError: the tokenizer has no chat template, or the template cannot render these turns (see
                `ChatTemplate.render`).
        """
        turns = conversation.turns
        if self.system is not None and turns[0].role != "system":
            turns = (Turn("system", self.system), *turns)
        return with_prefill(self.template.render(turns), conversation.prefill)

    def encode(self, texts: Sequence[str]) -> BatchEncoding:
        """Token ids and attention mask [batch, tokens] of rendered texts, left-padded, on the model's device.

        Raises:
            SafetyNeuronsError: a text is longer than the model's context.
        """
        # The template has added the special tokens already; a second BOS would shift every activation.
        rows = self._tokens(texts, add_special_tokens=False)
        for index, reason in too_long(list(map(len, rows)), 0, context_length(self.model.config)).items():
            raise SafetyNeuronsError(
                f"A prompt is too long for {self.name}: {reason}. Leave it out or shorten it. It begins with "
                f"{texts[index][:60]!r}."
            )
        return self._padded(rows)

    def encode_plain(self, texts: Sequence[str]) -> BatchEncoding:
        """Like `encode`, of texts outside the chat template, with the tokenizer's own special tokens."""
        return self._padded(self._tokens(texts, add_special_tokens=True))

    def _tokens(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        try:
            found: list[list[int]] = self.tokenizer(list(map(encodable, texts)), add_special_tokens=add_special_tokens)[
                "input_ids"
            ]
        except BaseException as error:
            # tokenizers raises a bare Exception, and a panic of its own, which is not an Exception.
            if type(error) is Exception or is_panic(error):
                raise SafetyNeuronsError(
                    f"The tokenizer of {self.name} cannot read a prompt: {error}. Get its files again."
                ) from error
            raise
        return found

    def _padded(self, rows: Sequence[Sequence[int]]) -> BatchEncoding:
        embedded = int(self.model.get_input_embeddings().weight.shape[0])
        if (largest := max((token for row in rows for token in row), default=0)) >= embedded:
            raise SafetyNeuronsError(
                f"The tokenizer of {self.name} writes the token {self.tokenizer.convert_ids_to_tokens(largest)!r} "
                f"(id {largest}), and the model has embeddings for {embedded:,} tokens only. Use the tokenizer that "
                "the weights were saved with."
            )
        return left_padded(rows, padding_token(self)).to(self.device)

    def too_long(self, texts: Sequence[str], new_tokens: int = 0) -> dict[int, str]:
        """By index, why a rendered text with an answer of `new_tokens` does not fit the model's context."""
        context = context_length(self.model.config)
        # A token holds at least one byte of what a tokenizer keeps of a text.
        if context is None or all(len(text.encode(errors="replace")) + new_tokens <= context // 2 for text in texts):
            return {}
        return too_long(list(map(len, self._tokens(texts, add_special_tokens=False))), new_tokens, context)

    def chat(self, user: str, max_new_tokens: int = 256) -> str:
        """The model's greedy answer to one user turn."""
        return next(iter(generate(self, [self.render(user)], max_new_tokens=max_new_tokens)))[1].text
