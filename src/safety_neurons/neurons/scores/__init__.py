"""Scores that rank neurons, one file each; a new file that defines `SCORE` adds a score."""

import sys

from safety_neurons.core.plugins import choose, discover
from safety_neurons.neurons.scores.score import Evidence, NeuronValues, Reading, Score, Tokens, WriteNorms

__all__ = ["Evidence", "NeuronValues", "Reading", "Score", "Tokens", "WriteNorms", "get", "names"]


def names() -> list[str]:
    """The names of all scores."""
    return list(discover(sys.modules[__name__], "SCORE"))


def get(name: str) -> Score:
    """The score called `name`.

    Raises:
        SafetyNeuronsError: there is none.
    """
    score = choose(discover(sys.modules[__name__], "SCORE"), name, "score")
    assert isinstance(score, Score)
    return score
