"""Attacks to test a defense with: each file here that defines `ATTACK` or `ATTACKS`; others come from outside."""

import sys

from safety_neurons.core.plugins import Family
from safety_neurons.evaluation.contracts import Attack, Template
from safety_neurons.models.chat import AttackedPrompt

__all__ = ["Attack", "AttackedPrompt", "Template", "get", "names", "template"]

_FAMILY = Family("attack", sys.modules[__name__], Attack)
names, get = _FAMILY.names, _FAMILY.get


def template(name: str) -> Template:
    """The attack called `name`, which has to be the same for every model; same errors as `get`."""
    return _FAMILY.narrowed(get(name), Template, "is not a fixed template")
