"""Defenses to compare, found by name in the files that define `DEFENSE` or `DEFENSES`."""

import sys

from safety_neurons.core.plugins import configured, discover
from safety_neurons.evaluation.contracts import Defended, Defense, Response

__all__ = ["Defended", "Defense", "Response", "get", "names"]


def names() -> list[str]:
    """The names of all defenses, in order of their file names."""
    return list(_members())


def get(name: str) -> Defense:
    """The defense called `name`, or `name:option=value,...`.

    Raises:
        SafetyNeuronsError: no defense has this name or such an option.
    """
    defense: Defense = configured(_members(), name, "defense")
    return defense


def _members() -> dict[str, Defense]:
    return discover(sys.modules[__name__], "DEFENSE")
