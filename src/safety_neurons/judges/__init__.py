"""Judges: each file that defines `JUDGE` is one, found by its name."""

import sys

from safety_neurons.judges.judge import Judge, Judgement, Verdict
from safety_neurons.plugins import choose, discover

__all__ = ["Judge", "Judgement", "Verdict", "get", "names"]


def names() -> list[str]:
    """The names of all judges, in order of their file names."""
    return list(_members())


def get(name: str) -> Judge:
    """The judge called `name`.

    Raises:
        SafetyNeuronsError: no judge has this name.
    """
    judge: Judge = choose(_members(), name, "judge")
    return judge


def _members() -> dict[str, Judge]:
    return discover(sys.modules[__name__], "JUDGE")
