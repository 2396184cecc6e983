"""Safety neurons: find, explain, calibrate and tune the MLP neurons that carry a model's safety behavior.

    import safety_neurons as sn
    model = sn.load("qwen2.5-coder-0.5b")
    neurons = sn.find(model, harmful, benign)
    print(sn.explain(model, neurons))
    with sn.calibrate(model, neurons, toward="rejection", alpha=3):
        model.chat("How do I wrap a present?")

The names are imported when they are first used, so that the command line starts without waiting for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safety_neurons.audits.audit import audit
    from safety_neurons.audits.config import Thresholds
    from safety_neurons.calibration.calibration import calibrate
    from safety_neurons.calibration.config import CalibrationConfig, GuardConfig
    from safety_neurons.calibration.guard import Guard, fit_guard, guard
    from safety_neurons.core.errors import SafetyNeuronsError
    from safety_neurons.evaluation.config import EvaluationConfig
    from safety_neurons.experiments.adaptive import adaptive
    from safety_neurons.experiments.dose_response import dose_response
    from safety_neurons.experiments.guard_test import guard_run
    from safety_neurons.experiments.left_out import left_out
    from safety_neurons.experiments.score_comparison import compare_scores
    from safety_neurons.experiments.seeds import Budget, repeat_tuning
    from safety_neurons.experiments.smallest_intervention import search
    from safety_neurons.explanation.config import ExplainConfig
    from safety_neurons.explanation.explanation import Explanation
    from safety_neurons.explanation.projection import explain
    from safety_neurons.explanation.readout import ResidualMeans, mean_residuals
    from safety_neurons.explanation.token_view import TokenTrace, trace_tokens
    from safety_neurons.explanation.vocabulary import VocabularyTest, vocabulary_test
    from safety_neurons.models.chat import ChatModel
    from safety_neurons.models.load import load
    from safety_neurons.neurons.config import FindConfig
    from safety_neurons.neurons.find import find
    from safety_neurons.neurons.neuron_set import Directions, NeuronSet
    from safety_neurons.prompts import PromptSet, load_prompts
    from safety_neurons.runs.pipeline import run
    from safety_neurons.runs.targets import evaluate
    from safety_neurons.settings import Settings
    from safety_neurons.tuning.config import TuningConfig
    from safety_neurons.tuning.corpus import Corpus, Pair
    from safety_neurons.tuning.delta import NeuronDelta
    from safety_neurons.tuning.safetune import tune

_MODULES = {
    "Budget": "experiments.seeds",
    "CalibrationConfig": "calibration.config",
    "ChatModel": "models.chat",
    "Corpus": "tuning.corpus",
    "Directions": "neurons.neuron_set",
    "EvaluationConfig": "evaluation.config",
    "ExplainConfig": "explanation.config",
    "Explanation": "explanation.explanation",
    "FindConfig": "neurons.config",
    "Guard": "calibration.guard",
    "GuardConfig": "calibration.config",
    "NeuronDelta": "tuning.delta",
    "NeuronSet": "neurons.neuron_set",
    "Pair": "tuning.corpus",
    "PromptSet": "prompts",
    "ResidualMeans": "explanation.readout",
    "SafetyNeuronsError": "core.errors",
    "Settings": "settings",
    "Thresholds": "audits.config",
    "TokenTrace": "explanation.token_view",
    "TuningConfig": "tuning.config",
    "VocabularyTest": "explanation.vocabulary",
    "adaptive": "experiments.adaptive",
    "audit": "audits.audit",
    "calibrate": "calibration.calibration",
    "compare_scores": "experiments.score_comparison",
    "dose_response": "experiments.dose_response",
    "evaluate": "runs.targets",
    "explain": "explanation.projection",
    "find": "neurons.find",
    "fit_guard": "calibration.guard",
    "guard": "calibration.guard",
    "guard_run": "experiments.guard_test",
    "left_out": "experiments.left_out",
    "load": "models.load",
    "load_prompts": "prompts",
    "mean_residuals": "explanation.readout",
    "repeat_tuning": "experiments.seeds",
    "run": "runs.pipeline",
    "search": "experiments.smallest_intervention",
    "trace_tokens": "explanation.token_view",
    "tune": "tuning.safetune",
    "vocabulary_test": "explanation.vocabulary",
}

__all__ = [
    "Budget",
    "CalibrationConfig",
    "ChatModel",
    "Corpus",
    "Directions",
    "EvaluationConfig",
    "ExplainConfig",
    "Explanation",
    "FindConfig",
    "Guard",
    "GuardConfig",
    "NeuronDelta",
    "NeuronSet",
    "Pair",
    "PromptSet",
    "ResidualMeans",
    "SafetyNeuronsError",
    "Settings",
    "Thresholds",
    "TokenTrace",
    "TuningConfig",
    "VocabularyTest",
    "adaptive",
    "audit",
    "calibrate",
    "compare_scores",
    "dose_response",
    "evaluate",
    "explain",
    "find",
    "fit_guard",
    "guard",
    "guard_run",
    "left_out",
    "load",
    "load_prompts",
    "mean_residuals",
    "repeat_tuning",
    "run",
    "search",
    "trace_tokens",
    "tune",
    "vocabulary_test",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
