"""`find`, `explain` and `tune` with options that are quick on tiny models, and for which the tests know the numbers.

The defaults of the library are tested in tests/test_settings.py.
"""

from typing import Any

from safety_neurons.explanation import projection
from safety_neurons.explanation.explanation import Explanation
from safety_neurons.neurons import find as finding
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning import safetune
from safety_neurons.tuning.delta import NeuronDelta

FIND: dict[str, Any] = {"score": "write-contrast", "percent": 0.5}
EXPLAIN: dict[str, Any] = {"random_sets": 200}
TUNE: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 1, "kl": 0.0}


def find(*arguments: Any, **options: Any) -> NeuronSet:
    """Without gradients."""
    return finding.find(*arguments, **(FIND | options))


def score_neurons(*arguments: Any, **options: Any) -> ScoredNeurons:
    """Without gradients."""
    return finding.score_neurons(*arguments, **(FIND | options))


def explain(*arguments: Any, **options: Any) -> Explanation:
    """With fewer random sets."""
    return projection.explain(*arguments, **(EXPLAIN | options))


def tune(*arguments: Any, **options: Any) -> NeuronDelta:
    """One epoch, and no KL penalty."""
    return safetune.tune(*arguments, **(TUNE | options))
