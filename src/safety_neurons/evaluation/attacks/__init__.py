"""Attacks to test a defense with: found by name in the files that define `ATTACK` or `ATTACKS`."""

import sys

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import configured, discover
from safety_neurons.evaluation.contracts import Attack, Template
from safety_neurons.models.chat import AttackedPrompt

__all__ = ["Attack", "AttackedPrompt", "Template", "get", "names", "template"]


def names() -> list[str]:
    """The names of all attacks, in order of their file names."""
    return list(_members())


def get(name: str) -> Attack:
    """The attack called `name`, or `name:option=value,...`.

    Raises:
        SafetyNeuronsError: no attack has this name or such an option.
    """
    attack: Attack = configured(_members(), name, "attack")
    return attack


def template(name: str) -> Template:
    """The attack called `name`, which is the same for every model.

    Raises:
        SafetyNeuronsError: no attack has this name, or it depends on the model under test.
    """
    attack = get(name)
    if not isinstance(attack, Template):
        known = [name for name, member in _members().items() if isinstance(member, Template)]
        raise SafetyNeuronsError(
            f"The attack {attack.name} is not a fixed template. Choose one of {', '.join(known)}; the others run with "
            "`safety-neurons evaluate`."
        )
    return attack


def _members() -> dict[str, Attack]:
    return discover(sys.modules[__name__], "ATTACK")
