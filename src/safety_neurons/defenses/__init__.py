"""Defences to compare: each file that defines `DEFENSE` is one, found by its name."""

import sys

from safety_neurons.defenses.defense import Defended, Defense, Response
from safety_neurons.plugins import configured, discover

__all__ = ["Defended", "Defense", "Response", "get", "names"]


def names() -> list[str]:
    """The names of all defences, in order of their file names."""
    return list(_members())


def get(name: str) -> Defense:
    """The defence called `name`, or `name:option=value,...`.

    Raises:
        SafetyNeuronsError: no defence has this name or such an option.
    """
    defense: Defense = configured(_members(), name, "defense")
    return defense


def _members() -> dict[str, Defense]:
    return discover(sys.modules[__name__], "DEFENSE")
