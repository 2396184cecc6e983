"""Reasoning before an answer: the marks of common model families, and how a thought is parted from the answer.

A judge must read the answer alone: a thought weighs both sides, so it looks like a refusal and like compliance.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import BoolTensor, Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

if TYPE_CHECKING:
    from safety_neurons.models.chat import ChatModel

# The opening and the closing mark, with the families that write them.
MARKS = (
    ("<think>", "</think>"),  # Qwen3, QwQ, DeepSeek-R1, Phi-4-reasoning, Nemotron, GLM, MiniMax
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
)
# gpt-oss writes channels: analysis and commentary are thoughts, final is the answer.
_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>(?P<name>\w++)[^<]*+<\|message\|>(?P<said>.*?)"
    r"(?P<end><\|(?:end|return|call)\|>|(?=<\|start\|>)|\Z)",
    re.DOTALL,
)
# The same from servers that leave out special tokens: "analysisWe ...assistantfinalSorry ...".
_BARE_CHANNELS = re.compile(
    r"\A\s*analysis(?=[A-Z\"'][\w']*,?\s[a-z]).*?(?:assistantfinal(?P<said>.*)|\Z)",
    re.DOTALL,
)
# Marks around the answer, which are left out.
_ANSWER_OPENS = ("<answer>", "<response>", "<|begin_of_solution|>", "<|START_RESPONSE|>")
_ANSWER_CLOSES = ("</answer>", "</response>", "<|end_of_solution|>", "<|END_RESPONSE|>")
_CLOSING = {opening.lower(): closing for opening, closing in MARKS}
_OPENINGS = re.compile("|".join(re.escape(opening) for opening, _ in MARKS), re.IGNORECASE)
_OPENS = re.compile(rf"\s*({_OPENINGS.pattern})", re.IGNORECASE)
_CLOSES = re.compile("|".join(re.escape(closing) for _, closing in MARKS), re.IGNORECASE)
# A closing mark without an opening one counts where a line ends: an answer may mention the mark in passing.
_CLOSES_LINE = re.compile(
    rf"(?:{'|'.join(re.escape(closing) for _, closing in MARKS if not closing[0].isalpha())})[ \t]*(?=\n|\Z)",
    re.IGNORECASE,
)
_FINAL = re.compile(r"<\|channel\|>final[^<]*<\|message\|>")
# No mark is longer, in tokens.
_LONGEST_MARK = 12
_CHANNEL_TOKENS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>")


class Parted(NamedTuple):
    """A text in two parts; `unfinished` if it ends inside the thought."""

    reasoning: str
    answer: str
    unfinished: bool = False


def part(text: str, inside: bool = False) -> Parted:
    """Part the reasoning at the start of a text from the answer.

    `inside`: the prompt ends with an opening mark, so the text begins inside a thought. The reasoning keeps its marks:
    without marks around the answer, reasoning and answer together are the text.
    """
    if "<|channel|>" in text and (channels := list(_CHANNEL.finditer(text))):
        return _part_channels(text, channels)
    if bare := _BARE_CHANNELS.match(text):
        unfinished = bare["said"] is None
        return Parted(text, "", unfinished) if unfinished else Parted(text[: bare.start("said")], bare["said"])
    place = 0
    if inside:
        closing = _CLOSES.search(text)
        if closing is None:
            return Parted(text, "", unfinished=True)
        place = closing.end()
    while opening := _OPENS.match(text, place):
        closes = re.compile(re.escape(_CLOSING[opening[1].lower()]), re.IGNORECASE)
        closing = closes.search(text, opening.end())
        if closing is None:
            return Parted(text, "", unfinished=True)
        # Thoughts within the thought.
        for _ in re.findall(re.escape(opening[1]), text[opening.end() : closing.start()], re.IGNORECASE):
            if (later := closes.search(text, closing.end())) is None:
                break
            closing = later
        place = closing.end()
    if not place and (closing := _CLOSES_LINE.search(text)) and not _OPENINGS.search(text, 0, closing.start()):
        # The server or the template kept the opening mark.
        place = closing.end()
    if not place:
        return Parted("", text)
    answer = text[place:].lstrip()
    return Parted(text[: len(text) - len(answer)], _without_marks(answer))


def _without_marks(answer: str) -> str:
    """The answer without the marks around it, and without the space beside them."""
    if opening := next((mark for mark in _ANSWER_OPENS if answer.startswith(mark)), ""):
        answer = answer.removeprefix(opening).lstrip()
    end = answer.rstrip()
    closing = next((mark for mark in _ANSWER_CLOSES if end.endswith(mark)), "")
    return end.removesuffix(closing).rstrip() if closing else answer


def _part_channels(text: str, channels: Sequence[re.Match[str]]) -> Parted:
    final = next((one for one in channels if one["name"] == "final"), None)
    if final is None:
        return Parted(text, "", unfinished=not channels[-1]["end"])
    return Parted(text[: final.start("said")], final["said"])


def opens_thought(prompt: str) -> str:
    """The closing mark of the thought that a rendered prompt leaves open at its end; empty if it opens none."""
    end = prompt.rstrip()
    return next((closing for opening, closing in MARKS if end.endswith(opening)), "")


def with_prefill(prompt: str, prefill: str) -> str:
    """The rendered prompt with the beginning of an answer; a thought that the prompt opens is closed before it."""
    closing = opens_thought(prompt) if prefill else ""
    return f"{prompt}{closing}\n\n{prefill}" if closing else f"{prompt}{prefill}"


def texts_of(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """Texts of token ids [tokens] of any length, without special tokens but those that mark reasoning."""
    special = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    # "<|end|>" and others are parts of a mark only in tokenizers that have channels.
    channels = _CHANNEL_TOKENS if _CHANNEL_TOKENS[0] in special.values() else ()
    marks = {index for index, token in special.items() if token in channels or _is_mark(token)}
    if not marks:
        return list(tokenizer.batch_decode(rows, skip_special_tokens=True))
    kept = [[index for index in row if index not in special or index in marks] for row in rows]
    return list(tokenizer.batch_decode(kept, skip_special_tokens=False))


def _is_mark(token: str) -> bool:
    """Whether a token is a mark, or the beginning of one ("<|channel>" of "<|channel>thought")."""
    return bool(_CLOSES.fullmatch(token)) or any(opening.startswith(token) for opening, _ in MARKS if len(token) > 3)


# Options of chat templates that turn thinking on and off: Qwen3, GLM and others; DeepSeek-V3.1, Granite.
SWITCHES = ("enable_thinking", "thinking")
Thinking = Literal["none", "off", "on"]


def switch_of(model: "ChatModel") -> str | None:
    """The option of the model's chat template that turns thinking on and off; None if there is none."""
    return next((name for name in SWITCHES if _switched(model, name, True) != _switched(model, name, False)), None)


def thinking_of(model: "ChatModel") -> Thinking:
    """Whether the model thinks before it answers, as far as its chat template says: "none" if it says nothing."""
    if not model.tokenizer.chat_template:
        return "none"
    prompt = model.render("Hello")
    if opens_thought(prompt) or _CHANNEL_TOKENS[0] in str(model.tokenizer.chat_template):
        return "on"
    switch = switch_of(model)
    if switch is None:
        return "none"
    return "off" if prompt == _switched(model, switch, False) else "on"


def may_think(model: "ChatModel") -> bool:
    """Whether the model may write a thought: its template turns thinking on, or its tokenizer has marks for it."""
    thinking = thinking_of(model)
    if thinking != "none":
        return thinking == "on"
    return any(_is_mark(token.content) for token in model.tokenizer.added_tokens_decoder.values())


def without_thinking(model: "ChatModel") -> "ChatModel":
    """The model with thinking switched off, if its chat template has a switch for that."""
    switch = switch_of(model) if model.tokenizer.chat_template else None
    return model if switch is None else replace(model, template_options={**model.template_options, switch: False})


def _switched(model: "ChatModel", switch: str, thinking: bool) -> str:
    return replace(model, template_options={**model.template_options, switch: thinking}).render("Hello")


class AnswerLength(StoppingCriteria):
    """Ends a row `new_tokens` after its thought, or after its beginning if it holds none.

    `start` is the length of the prompts; `inside[row]`: the prompt ends inside a thought.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, new_tokens: int, inside: Sequence[bool]) -> None:
        self.tokenizer, self.start, self.new_tokens = tokenizer, start, new_tokens
        # By row, the number of new tokens up to the answer; None within a thought.
        self.answer_starts: list[int | None] = [None if each else 0 for each in inside]
        self.decided = min(_LONGEST_MARK, new_tokens)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> BoolTensor:
        written = input_ids.shape[1] - self.start
        thinking = [row for row, place in enumerate(self.answer_starts) if place is None]
        if thinking:
            last = input_ids[thinking, max(self.start, input_ids.shape[1] - _LONGEST_MARK) :].tolist()
            for row, text in zip(thinking, texts_of(self.tokenizer, last), strict=True):
                if _CLOSES.search(text) or _FINAL.search(text):
                    self.answer_starts[row] = written
        if written == self.decided:
            # A row opens a thought with its first tokens, or not at all.
            for row, place in enumerate(self.answer_starts):
                if place == 0:
                    self.answer_starts[row] = self._answer_start(input_ids[row, self.start :].tolist())
        ends = [place is not None and written - place >= self.new_tokens for place in self.answer_starts]
        return torch.tensor(ends, device=input_ids.device)  # type: ignore[return-value]

    def own_tokens(self, new: Tensor, new_tokens: int) -> list[list[int]]:
        """What each row wrote up to the end of its thought and `new_tokens` more, of the new tokens [rows, tokens]."""
        ends = [None if place is None else place + new_tokens for place in self.answer_starts]
        return [row[:end] for row, end in zip(new.tolist(), ends, strict=True)]

    def _answer_start(self, new: list[int]) -> int | None:
        """The number of tokens up to the answer of a row that has just begun; None within a thought."""
        beginnings = [part(text) for text in texts_of(self.tokenizer, [new[:end] for end in range(len(new) + 1)])]
        if beginnings[-1].unfinished:
            return None
        # The first beginning with a whole thought ends where the answer starts.
        return next((end for end, one in enumerate(beginnings) if one.reasoning and not one.unfinished), 0)
