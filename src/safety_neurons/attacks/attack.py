"""What an attack is: a function from a request to the prompt that is sent in its place."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class AttackedPrompt:
    """What the model is given: the user's turn, and a text that the assistant's turn starts with (may be empty).

    The answer to judge is `prefill` followed by what the model writes after it.
    """

    user: str
    prefill: str = ""


@dataclass(frozen=True)
class Attack:
    """A named attack; `apply(request)` keeps the request as it is, somewhere in the user's turn.

    `source` says where the method was published. `sees_defended_model` tells whether the attack was made with
    access to the model under test, which makes its success rate a stronger claim; fixed templates do not have it.
    """

    name: str
    source: str
    description: str
    apply: Callable[[str], AttackedPrompt]
    sees_defended_model: bool = False
