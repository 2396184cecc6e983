"""The request in Base64, which hides every word of it from what was learnt about words."""

import base64

from safety_neurons.evaluation.attacks.encodings import encoded


def encode(request: str) -> str:
    """The request's UTF-8 bytes in Base64."""
    return base64.b64encode(request.encode()).decode("ascii")


ATTACK = encoded("base64", "written in Base64", encode)
