"""Randomly changed copies of a prompt (the change follows from a seed and the text alone): SmoothLLM and RA-LLM.

A suffix that was searched for breaks when characters change, and the model refuses the request again. Attacks in plain
words survive SmoothLLM's typos; RA-LLM drops words.
"""

import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation.contracts import (
    EvaluationContext,
    Response,
    respond_unless,
    respond_with,
)
from safety_neurons.evaluation.defenses.prompting import TextDefense, seeded
from safety_neurons.evaluation.judges import rules
from safety_neurons.models.chat import AttackedPrompt

Perturbation = Literal["swap", "insert", "patch"]

# The characters that are drawn, as in SmoothLLM.
ALPHABET = string.printable
# Scripts without spaces between words: each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s])|\s+")


def swapped(text: str, share: float, numbers: random.Random) -> str:
    """The text with this share of its characters, rounded down, replaced by random ones."""
    characters = list(text)
    for place in numbers.sample(range(len(text)), int(len(text) * share)):
        characters[place] = numbers.choice(ALPHABET)
    return "".join(characters)


def inserted(text: str, share: float, numbers: random.Random) -> str:
    """The text with a random character before this share of its characters."""
    places = set(numbers.sample(range(len(text)), int(len(text) * share)))
    return "".join(
        f"{numbers.choice(ALPHABET)}{character}" if place in places else character
        for place, character in enumerate(text)
    )


def patched(text: str, share: float, numbers: random.Random) -> str:
    """The text with one stretch of this share of its characters replaced by random ones."""
    width = int(len(text) * share)
    start = numbers.randint(0, len(text) - width)
    return text[:start] + "".join(numbers.choices(ALPHABET, k=width)) + text[start + width :]


PERTURBATIONS: dict[Perturbation, Callable[[str, float, random.Random], str]] = {
    "swap": swapped,
    "insert": inserted,
    "patch": patched,
}


def words(text: str) -> list[str]:
    """Words and punctuation marks, each with the space before it; joined, they are the text."""
    return _WORD.findall(text)


def dropped(pieces: Sequence[str], share: float, numbers: random.Random) -> str:
    """The text without a random share of its pieces, rounded down."""
    gone = set(numbers.sample(range(len(pieces)), int(len(pieces) * share)))
    return "".join(piece for place, piece in enumerate(pieces) if place not in gone)


@dataclass(frozen=True, kw_only=True)
class SmoothLLM(TextDefense):
    """Answers `copies` of the prompt, with `percent` of the characters of the user's turn perturbed in each.

    A copy's answer counts as jailbroken unless the keyword judge calls it a refusal. The majority is jailbroken if more
    than half are, as published. The result is the first copy's answer that agrees with the majority, which is as random
    as the published choice. Answers to perturbed prompts are worse, and each prompt costs `copies` answers.
    """

    copies: int = 10
    percent: float = 10.0
    perturbation: Perturbation = "swap"

    def __post_init__(self) -> None:
        if self.copies < 1 or not 0 <= self.percent <= 100:
            raise SafetyNeuronsError(f"{self.name}: copies must be at least 1, and percent between 0 and 100.")

    def respond(self, context: EvaluationContext, prompts: Sequence[AttackedPrompt]) -> list[Response]:
        copied = [copy for prompt in prompts for copy in self._copies(prompt, context.seed)]
        answers = respond_with(context, copied)
        starts = range(0, len(answers), self.copies)
        return [_majority(prompt, answers[at : at + self.copies]) for prompt, at in zip(prompts, starts, strict=True)]

    def _copies(self, prompt: AttackedPrompt, seed: int) -> list[AttackedPrompt]:
        perturb = PERTURBATIONS[self.perturbation]
        numbers = seeded(seed, "smoothllm", prompt.user)
        return [replace(prompt, user=perturb(prompt.user, self.percent / 100, numbers)) for _ in range(self.copies)]


def _majority(prompt: AttackedPrompt, answers: Sequence[Response]) -> Response:
    """The first answer that is refused, or not, like most; refused in a tie. Copies that were not run have no vote."""
    answers = [answer for answer in answers if answer.outcome != "not run"] or answers[:1]
    judge = rules("keywords").judge
    refused = [judge(prompt.user, answer.text).verdict == "refused" for answer in answers]
    return answers[refused.index(2 * sum(refused) >= len(answers))]


@dataclass(frozen=True, kw_only=True)
class RandomDrop(TextDefense):
    """Blocks a prompt that the model refuses, or more than `threshold` of its `copies` without `share` of the words.

    The keyword judge reads the first `tokens` of each answer. The published method drops tokens; here words and
    punctuation marks are dropped, so a model behind a server can be defended, too.
    """

    copies: int = 20
    share: float = 0.3
    threshold: float = 0.2
    tokens: int = 10

    def __post_init__(self) -> None:
        if min(self.copies, self.tokens) < 1 or not 0 <= self.share < 1 or not 0 <= self.threshold <= 1:
            raise SafetyNeuronsError(
                f"{self.name}: copies and tokens must be at least 1, share and threshold between 0 and 1."
            )

    def respond(self, context: EvaluationContext, prompts: Sequence[AttackedPrompt]) -> list[Response]:
        asked = [copy for prompt in prompts for copy in (prompt, *self._copies(prompt, context.seed))]
        answers = context.answers([copy.conversation for copy in asked], self.tokens)
        judge = rules("keywords").judge
        refused = [
            judge(copy.user, Response.of(copy, answer).text).verdict == "refused"
            for copy, answer in zip(asked, answers, strict=True)
        ]
        each = self.copies + 1
        blocked = [
            refused[at] or sum(refused[at + 1 : at + each]) > self.threshold * self.copies
            for at in range(0, len(refused), each)
        ]
        return respond_unless(blocked, context, prompts)

    def _copies(self, prompt: AttackedPrompt, seed: int) -> list[AttackedPrompt]:
        numbers, pieces = seeded(seed, "random-drop", prompt.user), words(prompt.user)
        return [replace(prompt, user=dropped(pieces, self.share, numbers)) for _ in range(self.copies)]


DEFENSES = (
    SmoothLLM(
        name="smoothllm",
        source="Robey et al. 2023, SmoothLLM (arXiv:2310.03684); 10 copies, 10 percent swapped",
        description="Answers several randomly misspelled copies of the prompt; the majority decides.",
    ),
    RandomDrop(
        name="random-drop",
        source="Cao et al. 2023, Defending Against Alignment-Breaking Attacks via Robustly Aligned LLM "
        "(arXiv:2309.14348); 20 copies without 30% of their tokens, threshold 0.2, 10 new tokens",
        description="Blocks a prompt that the model refuses once random words are missing.",
    ),
)
