"""How hard a calibration pushes, so that sets of neurons can be compared at equal pushes."""

import hashlib

from safety_neurons.calibrate.knobs import Knobs
from safety_neurons.find.neuron_set import NeuronSet
from safety_neurons.find.scores import Layers


def dose(neurons: NeuronSet, norms: Layers, knobs: Knobs | None = None) -> float:
    """How much calibration adds for each unit of alpha: the summed length of all shifts at the prompt's last position.

    That is the sum over the neurons of |mean a_i(B) - mean a_i(H)| * ||r_i||_2, and so of their write-contrast scores.
    Of the knobs, the subset and the layers say which neurons are pushed; all when left out.
    """
    assert neurons.directions is not None
    total = 0.0
    for layer, indices, harmful, benign, norm in zip(
        neurons.layers,
        getattr(neurons, knobs.subset if knobs else "both"),
        neurons.directions.harmful,
        neurons.directions.benign,
        norms,
        strict=True,
    ):
        if knobs and knobs.layers and not knobs.layers[0] <= layer <= knobs.layers[1]:
            continue
        total += float(((benign[-1] - harmful[-1]).abs() * norm)[indices].sum())
    return total


def digest(neurons: NeuronSet) -> str:
    """A name for exactly these neurons and what is added to them."""
    assert neurons.directions is not None
    content = hashlib.sha256()
    for tensor in (*neurons.both, *neurons.directions.harmful, *neurons.directions.benign):
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()
