"""Calibration of the found neurons with the run's settings, at several sizes of the set; and of random neurons."""

from dataclasses import replace

from rivals.contract import Candidate, Lessons
from safety_neurons.calibration.config import Toward
from safety_neurons.experiments.intervention import Intervention
from safety_neurons.neurons.neuron_set import NeuronSet


def found(lessons: Lessons, toward: Toward) -> list[Candidate]:
    """A candidate for each size at which the score finds neurons."""
    settings = lessons.run.settings.find
    sets = {each: lessons.scored.top(each, settings.scope, settings.selection) for each in lessons.percents}
    return [
        calibrated(lessons, toward, f"{percent:g}%", neurons) for percent, neurons in sets.items() if len(neurons) > 0
    ]


def random_like(lessons: Lessons, toward: Toward, percent: float, seed: int) -> Candidate:
    """As many random neurons of each layer as the found ones of this size, and none of those."""
    settings = lessons.run.settings.find
    neurons = lessons.scored.top(percent, settings.scope, settings.selection)
    return calibrated(lessons, toward, f"{percent:g}%", neurons.random_like(seed))


def calibrated(lessons: Lessons, toward: Toward, variant: str, neurons: NeuronSet) -> Candidate:
    """The run's calibration of these neurons; the strength is alpha."""
    one = Intervention(variant, neurons, toward, 1.0, lessons.run.settings.calibrate)
    return Candidate(
        variant, len(neurons), sum(neurons.widths), "neurons", lambda strength: replace(one, alpha=strength)
    )
