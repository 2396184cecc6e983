"""Scores that rank neurons: each file here that defines `SCORE` is one; others come from outside (see `Family`)."""

import sys

from safety_neurons.core.plugins import Family
from safety_neurons.neurons.scores.score import Evidence, NeuronValues, Reading, Score, Tokens, WriteNorms

__all__ = ["Evidence", "NeuronValues", "Reading", "Score", "Tokens", "WriteNorms", "get", "names"]

_FAMILY = Family("score", sys.modules[__name__], Score)
names, get = _FAMILY.names, _FAMILY.get
