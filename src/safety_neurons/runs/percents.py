"""Neurons of a run by percentage, and the percentages that can be used where the one in the settings cannot."""

from collections.abc import Callable

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.find import score_neurons_of

# Beyond half of an MLP there are never as many random neurons.
TRIED = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50)


def is_usable(neurons: NeuronSet) -> bool:
    """Whether there are neurons, and as many others for a control."""
    return len(neurons) > 0 and neurons.crowded is None


def can_guard(neurons: NeuronSet) -> bool:
    """Whether some of the neurons can decide, and later ones act; and there are as many others for a control."""
    return is_usable(neurons) and in_two_layers(neurons)


def in_two_layers(neurons: NeuronSet) -> bool:
    return sum(count.rejection + count.conformity > 0 for count in neurons.per_layer()) > 1


def unusable(
    run: RunContext,
    scored: ScoredNeurons,
    setting: str,
    percent: float,
    problem: str,
    suits: Callable[[NeuronSet], bool] = is_usable,
    advice: str = "Set {setting} to {percent:g}",
) -> SafetyNeuronsError:
    """The error for a percentage of a run's settings, with those that can be used instead.

    Args:
        setting: its name, such as find.percent.
        problem: what is wrong with the neurons at `percent`; the beginning of the message.
        advice: how to use another percentage, as a template.
    """
    config = run.settings.find
    usable = [one for one in TRIED if suits(scored.top(one, config.scope, config.selection))]
    if not usable:
        return SafetyNeuronsError(
            f"{problem} (at {setting} {percent:g}). No other {setting} helps with the score {scored.score.name} on "
            f"{run.model.name}. Choose another find.score, more prompts or a larger model."
        )
    best = min(usable, key=lambda one: abs(one - percent))
    todo = advice.format(setting=setting, percent=best)
    return SafetyNeuronsError(f"{problem} (at {setting} {percent:g}). {todo}{_others(usable)}.")


def _others(usable: list[float]) -> str:
    first, last = TRIED.index(usable[0]), TRIED.index(usable[-1])
    if len(usable) < 3 or len(usable) <= last - first:
        return "" if len(usable) == 1 else f" (of those tried, {', '.join(f'{one:g}' for one in usable)} will do)"
    return f" (of those tried, all from {usable[0]:g} to {usable[-1]:g} will do)"


def neurons_to_tune(run: RunContext) -> NeuronSet:
    """The found neurons, or the best `tune.percent` by the run's score.

    Raises:
        SafetyNeuronsError: there are none at this percentage.
    """
    percent, settings = run.settings.tune.percent, run.settings.find
    if percent is None:
        return run.neurons
    scored = score_neurons_of(run)
    neurons = scored.top(percent, settings.scope, settings.selection)
    if not len(neurons):
        raise unusable(run, scored, "tune.percent", percent, "There are no neurons to tune")
    return neurons


def random_neurons_of(run: RunContext) -> NeuronSet:
    """The control of a run's neurons: as many random ones.

    Raises:
        SafetyNeuronsError: too few neurons are left for it.
    """
    if (problem := run.neurons.crowded) is not None:
        raise unusable(run, score_neurons_of(run), "find.percent", run.settings.find.percent, problem)
    return run.neurons.random_like(run.settings.seed + 1)
