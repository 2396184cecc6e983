"""Disguises of requests, by kind: the texts around a request that an attacker writes (jailbreak augmentation).

Harmful and safe requests are sent in the same disguises, so that a disguise is not itself a reason to refuse. The texts
are ours: none is a text of the evaluation's attacks or a published jailbreak, though some share an idea with one. Of
each kind, some are held back from training: to validate it, and others to test what carries over.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pydantic

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import AttackedPrompt, ChatModel, Turn
from safety_neurons.tuning.config import DISGUISE_KINDS, DisguiseKind
from safety_neurons.tuning.disguise_files import read_texts

# {request}, or its first words: {request:4}.
_PLACE = re.compile(r"\{request(?::(\d+))?\}")


@dataclass(frozen=True)
class Disguise:
    """What a request is sent as: the user's turn, the opening of the answer, and earlier turns of user and assistant.

    `{request}` in a text stands for the request, and `{request:4}` for its first four words.
    """

    text: str = "{request}"
    opening: str = ""
    turns: tuple[str, ...] = ()

    def __call__(self, request: str) -> AttackedPrompt:
        """The request in this disguise."""
        before = tuple(
            Turn("assistant" if number % 2 else "user", _filled(text, request))
            for number, text in enumerate(self.turns)
        )
        return AttackedPrompt(_filled(self.text, request).strip(), _filled(self.opening, request), before)


PLAIN = Disguise()


class DisguiseTexts(NamedTuple):
    """The disguises of one kind: to train on, to validate with, and to test with."""

    train: tuple[Disguise, ...]
    validation: tuple[Disguise, ...]
    test: tuple[Disguise, ...]


_TEXTS = pydantic.TypeAdapter(DisguiseTexts)


@functools.cache
def disguises(kind: DisguiseKind) -> DisguiseTexts:
    """All disguises of a kind."""
    return _TEXTS.validate_python(read_texts(kind))


def for_validation(kinds: Sequence[DisguiseKind]) -> list[Disguise]:
    """The disguises of these kinds that validate; neighbors are of different kinds."""
    texts = [disguises(kind).validation for kind in kinds]
    return [own[number] for number in range(max(map(len, texts), default=0)) for own in texts if number < len(own)]


def disguised(requests: Sequence[str], texts: Sequence[Disguise]) -> list[AttackedPrompt]:
    """The requests in these disguises, in turn."""
    return [texts[number % len(texts)](request) for number, request in enumerate(requests)]


def in_turn(count: int, kinds: Sequence[DisguiseKind], start: int = 0) -> list[Disguise]:
    """Disguises for `count` requests, of each kind in turn; without kinds none is disguised.

    Another `start` gives each request another kind. With fewer kinds, only the requests of the missing ones get another
    disguise: answers to the others stay cached.
    """
    return [_at_turn(start + number, kinds) if kinds else PLAIN for number in range(count)]


def _at_turn(turn: int, kinds: Sequence[DisguiseKind]) -> Disguise:
    lap, place = divmod(turn, len(DISGUISE_KINDS))
    kind = DISGUISE_KINDS[place]
    if kind in kinds:
        texts = disguises(kind).train
        return texts[lap % len(texts)]
    # Neighbors get other texts, also where one kind takes the place of all others.
    texts = disguises(kinds[turn % len(kinds)]).train
    return texts[turn % len(texts)]


def renderable(model: ChatModel, kinds: Sequence[DisguiseKind]) -> tuple[DisguiseKind, ...]:
    """The kinds that the model's chat template can write: some templates know no earlier turns."""
    return tuple(kind for kind in kinds if _is_renderable(model, disguises(kind).train[0]("Hello")))


def _is_renderable(model: ChatModel, sent: AttackedPrompt) -> bool:
    try:
        model.render_conversation(sent.conversation)
    except SafetyNeuronsError:
        return False
    return True


def _filled(text: str, request: str) -> str:
    def words(place: re.Match[str]) -> str:
        return request if place[1] is None else " ".join(request.split()[: int(place[1])])

    return _PLACE.sub(words, text)
