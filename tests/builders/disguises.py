"""The texts that attacks and disguises put around a request."""

from collections.abc import Iterable

from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.tuning.config import DISGUISE_KINDS
from safety_neurons.tuning.disguises import Disguise, disguises

MARK = "REQUEST"
TRAINED = tuple(one for kind in DISGUISE_KINDS for one in disguises(kind).train)
HELD_BACK = tuple(one for kind in DISGUISE_KINDS for one in (*disguises(kind).validation, *disguises(kind).test))


def parts(sent: AttackedPrompt) -> set[str]:
    """The texts around MARK in what is sent; a lone quotation mark is no text."""
    texts = (sent.user, sent.prefill, *(turn.content for turn in sent.before))
    return {part.strip() for text in texts for part in text.split(MARK) if any(map(str.isalpha, part))}


def parts_of(chosen: Iterable[Disguise]) -> set[str]:
    return {part for one in chosen for part in parts(one(MARK))}


def shared(texts: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of texts, one of which is in the other."""
    known = list(others)
    return [(one, other) for one in texts for other in known if one in other or other in one]
