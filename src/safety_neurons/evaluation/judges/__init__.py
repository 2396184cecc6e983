"""Judges: each file here that defines `JUDGE` or `JUDGES`; others come from outside (see `Family`)."""

import sys

from safety_neurons.core.plugins import Family
from safety_neurons.evaluation.contracts import Judge, JudgeInput, Judgment, RuleJudge, Verdict

__all__ = ["Judge", "JudgeInput", "Judgment", "RuleJudge", "Verdict", "get", "names", "rules"]

_FAMILY = Family("judge", sys.modules[__name__], Judge)
names, get = _FAMILY.names, _FAMILY.get


def rules(name: str) -> RuleJudge:
    """The judge called `name`, which has to be a set of rules without a model; same errors as `get`."""
    return _FAMILY.narrowed(get(name), RuleJudge, "asks a model")
