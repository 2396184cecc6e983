"""Safety neurons: find, explain, calibrate and tune the MLP neurons that carry a model's safety behaviour.

    import safety_neurons as sn
    model = sn.load("qwen2.5-coder-0.5b")
    neurons = sn.find(model, harmful, benign)
    print(sn.explain(model, neurons))
    with sn.calibrate(model, neurons, toward="rejection", alpha=3):
        model.chat("How do I wrap a present?")

The names are imported when they are first used, so that the command line starts without waiting for torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safety_neurons.calibrate.calibration import calibrate
    from safety_neurons.calibrate.guard import Guard, fit_guard, guard
    from safety_neurons.causal.adaptive import adaptive
    from safety_neurons.causal.detection import guard_run
    from safety_neurons.causal.dose_response import dose_response
    from safety_neurons.causal.search import search
    from safety_neurons.compare.compare import compare_scores
    from safety_neurons.errors import SafetyNeuronsError
    from safety_neurons.explain.explanation import Explanation
    from safety_neurons.explain.projection import explain
    from safety_neurons.explain.residual import ResidualMeans, mean_residuals
    from safety_neurons.explain.token_view import TokenTrace, trace_tokens
    from safety_neurons.explain.vocabulary import vocabulary_test
    from safety_neurons.explain.vocabulary_scores import VocabularyTest
    from safety_neurons.find.find import find
    from safety_neurons.find.neuron_set import Directions, NeuronSet
    from safety_neurons.grid.evaluation import evaluate
    from safety_neurons.models.chat import ChatModel
    from safety_neurons.models.load import load
    from safety_neurons.prompts import PromptSet, load_prompts
    from safety_neurons.run.pipeline import run
    from safety_neurons.settings import Settings
    from safety_neurons.tune.corpus import Corpus, Pair
    from safety_neurons.tune.delta import NeuronDelta
    from safety_neurons.tune.safetune import tune
    from safety_neurons.tune.training import Validation

_HOMES = {
    "ChatModel": "models.chat",
    "Corpus": "tune.corpus",
    "Directions": "find.neuron_set",
    "Explanation": "explain.explanation",
    "Guard": "calibrate.guard",
    "NeuronDelta": "tune.delta",
    "NeuronSet": "find.neuron_set",
    "Pair": "tune.corpus",
    "PromptSet": "prompts",
    "ResidualMeans": "explain.residual",
    "SafetyNeuronsError": "errors",
    "Settings": "settings",
    "TokenTrace": "explain.token_view",
    "Validation": "tune.training",
    "VocabularyTest": "explain.vocabulary_scores",
    "adaptive": "causal.adaptive",
    "calibrate": "calibrate.calibration",
    "compare_scores": "compare.compare",
    "dose_response": "causal.dose_response",
    "evaluate": "grid.evaluation",
    "explain": "explain.projection",
    "find": "find.find",
    "fit_guard": "calibrate.guard",
    "guard": "calibrate.guard",
    "guard_run": "causal.detection",
    "load": "models.load",
    "load_prompts": "prompts",
    "mean_residuals": "explain.residual",
    "run": "run.pipeline",
    "search": "causal.search",
    "trace_tokens": "explain.token_view",
    "tune": "tune.safetune",
    "vocabulary_test": "explain.vocabulary",
}

__all__ = [
    "ChatModel",
    "Corpus",
    "Directions",
    "Explanation",
    "Guard",
    "NeuronDelta",
    "NeuronSet",
    "Pair",
    "PromptSet",
    "ResidualMeans",
    "SafetyNeuronsError",
    "Settings",
    "TokenTrace",
    "Validation",
    "VocabularyTest",
    "adaptive",
    "calibrate",
    "compare_scores",
    "dose_response",
    "evaluate",
    "explain",
    "find",
    "fit_guard",
    "guard",
    "guard_run",
    "load",
    "load_prompts",
    "mean_residuals",
    "run",
    "search",
    "trace_tokens",
    "tune",
    "vocabulary_test",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


class _Package(ModuleType):
    """Importing the folder `find` would put a module where `sn.find` is a function; the function stays."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
