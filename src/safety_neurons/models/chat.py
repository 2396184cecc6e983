"""A model, its tokenizer and its chat template: text in, text out.

What is said to a model: turns, and the beginning of the answer that is asked for."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Self

import jinja2
import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.neurons.discovery import Coverage, find_neurons
from safety_neurons.models.neurons.hook_points import HookPoint, device_of


class Turn(NamedTuple):
    """One message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class AttackedPrompt:
    """What the model is given: the user's turn, and a text that the assistant's turn starts with (may be empty).

    The answer to judge is `prefill` followed by what the model writes after it. `before` are the earlier turns of the
    same conversation: a defense keeps them.
    """

    user: str
    prefill: str = ""
    before: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Turns that end with the user's; the assistant's answer begins with `prefill`, which may be empty."""

    turns: tuple[Turn, ...]
    prefill: str = ""

    @classmethod
    def of(cls, user: str, prefill: str = "", system: str | None = None, before: tuple[Turn, ...] = ()) -> Self:
        """A turn of the user's, after a system prompt and earlier turns where there are any."""
        first = () if system is None else (Turn("system", system),)
        return cls((*first, *before, Turn("user", user)), prefill)


# Texts that end in different tokens: what their rendered forms share at the end is the template's.
_ENDS = ("word", "Why?", "12", "Go on.")


@dataclass(frozen=True)
class ChatModel:
    """A causal language model that can be talked to.

    `identity` names the exact weights (a checksum or a commit). `template_options` are passed to the chat template,
    for instance `{"enable_thinking": False}`. `write_matrices` and `allow_partial` are for models whose neurons the
    structure does not show (see `find_neurons`).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    identity: str
    system: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    write_matrices: str | None = None
    allow_partial: bool = False

    @functools.cached_property
    def _found(self) -> tuple[tuple[HookPoint, ...], Coverage]:
        return find_neurons(self.model, write_matrices=self.write_matrices, allow_partial=self.allow_partial)

    @property
    def hook_points(self) -> tuple[HookPoint, ...]:
        """The MLP neurons of every layer, found and checked once."""
        return self._found[0]

    @property
    def coverage(self) -> Coverage:
        """How much of the model's MLPs these neurons are."""
        return self._found[1]

    @functools.cached_property
    def parameters(self) -> int:
        """How many weights the model has; tied ones count once."""
        # Not a sum over the tensors: quantized ones hold two weights in each byte.
        return int(self.model.num_parameters())

    @property
    def device(self) -> torch.device:
        """Where its inputs belong; a large model may have layers on other devices."""
        return device_of(self.model.get_input_embeddings())

    @functools.cached_property
    def template_tail(self) -> int:
        """How many tokens the chat template puts after the user's words, up to where the answer begins."""
        first, *others = (self.encode([self.render(text)])["input_ids"][0].tolist() for text in _ENDS)
        same = 0
        while all(same < len(other) and other[-1 - same] == first[-1 - same] for other in others):
            same += 1
        return same

    def with_system(self, system: str | None) -> Self:
        """The same model with another system prompt."""
        return replace(self, system=system)

    def render(self, user: str, prefill: str = "") -> str:
        """One user turn in the model's chat template, with the beginning of its answer put in its mouth.

        Raises:
            SafetyNeuronsError: the tokenizer has no chat template, or the template cannot render a user turn.
        """
        return self.render_conversation(Conversation.of(user, prefill))

    def render_conversation(self, conversation: Conversation) -> str:
        """Turns in the model's chat template; the model's own system prompt goes first where they bring none.

        Raises:
            SafetyNeuronsError: the tokenizer has no chat template, or the template cannot render these turns.
        """
        if not self.tokenizer.chat_template:
            raise SafetyNeuronsError(
                f"{self.name} has no chat template: it is a base model, or its tokenizer came without one. Choose the "
                "instruction-tuned version, or give a template with --chat-template FILE."
            )
        turns, system = list(conversation.turns), self.system
        if turns[0].role == "system":
            system = turns.pop(0).content
        if system is not None:
            text = self._apply([Turn("system", system), *turns], refused_is_none=True)
            if text is not None and system.strip() in text:
                return text + conversation.prefill
            warnings.warn(
                f"The chat template of {self.name} takes no system prompt: it is put before the user's turn.",
                stacklevel=2,
            )
            turns[0] = Turn("user", f"{system}\n\n{turns[0].content}")
        text = self._apply(turns, refused_is_none=False)
        assert text is not None
        return text + conversation.prefill

    def _apply(self, turns: Sequence[Turn], refused_is_none: bool) -> str | None:
        try:
            text = self.tokenizer.apply_chat_template(
                [turn._asdict() for turn in turns],
                tokenize=False,
                add_generation_prompt=True,
                **self.template_options,
            )
        except jinja2.TemplateError as error:
            if refused_is_none:
                return None
            raise SafetyNeuronsError(f"The chat template of {self.name} cannot be rendered: {error}") from error
        assert isinstance(text, str)
        return text

    def encode(self, texts: Sequence[str]) -> BatchEncoding:
        """Token ids and attention mask [batch, tokens] of rendered texts, padded on the left, on the model's device."""
        # The template already wrote the special tokens; a second BOS would shift every activation.
        encoded = self.tokenizer(
            list(texts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        return encoded.to(self.device)

    def chat(self, user: str, max_new_tokens: int = 256) -> str:
        """The model's greedy answer to one user turn."""
        from safety_neurons.models.generate import generate

        return next(iter(generate(self, [self.render(user)], max_new_tokens=max_new_tokens)))[1].text
