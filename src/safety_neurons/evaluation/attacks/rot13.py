"""The request in ROT13: each Latin letter is replaced by the one 13 places further on."""

import codecs

from safety_neurons.evaluation.attacks.encodings import encoded


def encode(request: str) -> str:
    """The request with the letters a to z and A to Z rotated; all else stays."""
    return codecs.encode(request, "rot13")


ATTACK = encoded("rot13", "written in ROT13, each letter moved by 13 places", encode)
