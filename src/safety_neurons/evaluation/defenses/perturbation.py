"""Random changes of a text that follow from a seed and the text alone."""

import random
import re
import string
from collections.abc import Callable, Sequence
from typing import Literal

from safety_neurons.core.files import fingerprint

Kind = Literal["swap", "insert", "patch"]

# What characters are drawn from, as SmoothLLM does.
ALPHABET = string.printable
# Scripts that put no spaces between words: each of their characters counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s])|\s+")


def drawing(*parts: object) -> random.Random:
    """Random numbers that are the same for the same parts, on every machine."""
    return random.Random(fingerprint(*parts))


def swapped(text: str, share: float, numbers: random.Random) -> str:
    """The text with this share of its characters, rounded down, each replaced by a random one."""
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


PERTURBATIONS: dict[Kind, Callable[[str, float, random.Random], str]] = {
    "swap": swapped,
    "insert": inserted,
    "patch": patched,
}


def words(text: str) -> list[str]:
    """Words and punctuation marks, each with the space before it; joined they are the text."""
    return _WORD.findall(text)


def dropped(pieces: Sequence[str], share: float, numbers: random.Random) -> str:
    """What is left of a text in pieces without a random share of them, rounded down."""
    gone = set(numbers.sample(range(len(pieces)), int(len(pieces) * share)))
    return "".join(piece for place, piece in enumerate(pieces) if place not in gone)
