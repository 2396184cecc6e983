"""Finding safety neurons."""

from safety_neurons.find.find import find
from safety_neurons.find.neuron_set import Directions, NeuronSet

__all__ = ["Directions", "NeuronSet", "find"]
