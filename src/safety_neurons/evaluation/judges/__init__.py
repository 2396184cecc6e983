"""Judges: each file that defines `JUDGE` is one, found by its name."""

import sys

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import configured, discover
from safety_neurons.evaluation.contracts import Judge, JudgeInput, Judgment, RuleJudge, Verdict

__all__ = ["Judge", "JudgeInput", "Judgment", "RuleJudge", "Verdict", "get", "names", "rules"]


def names() -> list[str]:
    """The names of all judges, in order of their file names."""
    return list(_members())


def get(name: str) -> Judge:
    """The judge called `name`, or `name:option=value,...`.

    Raises:
        SafetyNeuronsError: no judge has this name or such an option.
    """
    judge: Judge = configured(_members(), name, "judge")
    return judge


def rules(name: str) -> RuleJudge:
    """The judge called `name`, which needs no model.

    Raises:
        SafetyNeuronsError: no judge has this name, or it asks a model.
    """
    judge = get(name)
    if not isinstance(judge, RuleJudge):
        known = [name for name, member in _members().items() if isinstance(member, RuleJudge)]
        raise SafetyNeuronsError(
            f"The judge {judge.name} asks a model. Here one of these is needed: {', '.join(known)}; others are for "
            "`safety-neurons evaluate`."
        )
    return judge


def _members() -> dict[str, Judge]:
    return discover(sys.modules[__name__], "JUDGE")
