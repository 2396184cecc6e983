"""The neurons of a run: found or scored on its training prompts, with its settings."""

from safety_neurons.neurons import scores
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.neurons.read import passes
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.workers import score_together


def find_neurons_of(run: RunContext, title: str) -> NeuronSet:
    """The neurons of the model in its present state, found with the run's settings."""
    settings = run.settings.find
    return _scored(run, settings.score, title).top(settings.percent, settings.scope, settings.selection)


def score_neurons_of(run: RunContext, name: str | None = None, title: str | None = None) -> ScoredNeurons:
    """Every neuron's score on the training prompts: the run's score, or another one.

    `title` is for the progress bar.
    """
    name = name or run.settings.find.score
    return _scored(run, name, title or f"scoring neurons ({scores.get(name).name})")


def _scored(run: RunContext, name: str, title: str) -> ScoredNeurons:
    score = scores.get(name)
    sides, total = _training_sides(run, score)
    # Loaded before the bar begins.
    model, other = run.model, run.other_model if score.compares_models else None
    with run.listener.task(title, total) as advance:
        return score_together(model, run.settings, name, sides[0], sides[1], other, advance)


def _training_sides(run: RunContext, score: scores.Score) -> tuple[list[list[str]], int]:
    """The harmful and benign training prompts, and the total number that this score reads."""
    settings = run.settings.find
    sides = [[prompt.text for prompt in run.split(name, "train", settings.prompts)] for name in ("harmful", "benign")]
    return sides, passes(score, settings.tokens or score.tokens) * sum(map(len, sides))
