"""Attacks to test a defence with: each file that defines `ATTACK` is one, found by its name."""

import sys

from safety_neurons.attacks.attack import Attack, AttackedPrompt
from safety_neurons.plugins import choose, discover

__all__ = ["Attack", "AttackedPrompt", "get", "names"]


def names() -> list[str]:
    """The names of all attacks, in order of their file names."""
    return list(_members())


def get(name: str) -> Attack:
    """The attack called `name`.

    Raises:
        SafetyNeuronsError: no attack has this name.
    """
    attack: Attack = choose(_members(), name, "attack")
    return attack


def _members() -> dict[str, Attack]:
    return discover(sys.modules[__name__], "ATTACK")
