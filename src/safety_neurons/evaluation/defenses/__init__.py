"""Defenses to compare: each file here that defines `DEFENSE` is one; others come from outside (see `Family`)."""

import sys

from safety_neurons.core.plugins import Family
from safety_neurons.evaluation.contracts import Defended, Defense, Response

__all__ = ["Defended", "Defense", "Response", "get", "names"]

_FAMILY = Family("defense", sys.modules[__name__], Defense)
names, get = _FAMILY.names, _FAMILY.get
