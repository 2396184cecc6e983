"""Models: loading, talking, and where their MLP neurons are."""

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import load
from safety_neurons.models.neurons import Coverage, NeuronSite
from safety_neurons.models.presets import PRESETS, Preset

__all__ = ["PRESETS", "ChatModel", "Coverage", "NeuronSite", "Preset", "load"]
