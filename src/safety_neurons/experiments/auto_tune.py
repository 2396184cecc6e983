"""`tune --auto`: budget, score, learning rate and mix searched for the trade that suits the user.

The Pareto front of trials, and which of it to take."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy
import optuna

from safety_neurons.core.errors import DivergedError, SafetyNeuronsError
from safety_neurons.core.files import append_line, fingerprint, read_lines
from safety_neurons.core.plugins import trusted
from safety_neurons.core.progress import Listener
from safety_neurons.neurons import scores
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.corpus import corpus_of
from safety_neurons.runs.folder import RunFolder, merged_settings, overridden
from safety_neurons.runs.opened import keep_section, opened
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.plan import stage_fingerprints
from safety_neurons.runs.stages import score_as_settings_say
from safety_neurons.runs.validation import Validator
from safety_neurons.settings import Settings
from safety_neurons.tuning.batches import training_steps
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.safetune import tune


@dataclass(frozen=True)
class Objectives:
    """What tuning is judged by, all the lower the better: two rates, and nats per token."""

    attack_success: float
    over_refusal: float
    kl_divergence: float


@dataclass(frozen=True)
class Trial:
    """One tuning: its settings by their path ("tune.learning_rate"), and what came of it."""

    number: int
    settings: dict[str, Any]
    objectives: Objectives


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats: one that is nowhere worse and somewhere better."""
    return [trial for trial in trials if not any(_beats(other, trial) for other in trials)]


def _beats(one: Trial, other: Trial) -> bool:
    pairs = list(zip(astuple(one.objectives), astuple(other.objectives), strict=True))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


def choose(trials: Sequence[Trial], max_over_refusal: float | None = None) -> Trial:
    """The trial with the fewest successful attacks within the limit of over-refusal, or the front's knee without one.

    The knee is the trial of the front that is nearest to the ideal, each objective measured between its best and its
    worst value on the front.

    Raises:
        SafetyNeuronsError: no trial keeps to the limit.
    """
    if max_over_refusal is not None:
        within = [trial for trial in trials if trial.objectives.over_refusal <= max_over_refusal]
        if not within:
            least = min(trial.objectives.over_refusal for trial in trials)
            raise SafetyNeuronsError(
                f"No trial keeps over-refusal at {max_over_refusal:.1%} or below; the least is {least:.1%}. Allow more "
                "(--max-over-refusal), or try more settings (--trials)."
            )
        return min(within, key=lambda trial: astuple(trial.objectives))
    best = front(trials)
    values = numpy.array([astuple(trial.objectives) for trial in best])
    low, span = values.min(axis=0), numpy.ptp(values, axis=0)
    distances = numpy.linalg.norm((values - low) / numpy.where(span > 0, span, 1.0), axis=1)
    return best[int(distances.argmin())]


TRIALS = 12
SCORES = ("gradient", "write-contrast")
# What is searched, by its path in the settings.
SEARCHED = (
    *("find.score", "find.percent", "tune.learning_rate", "tune.kl"),
    *("tune.refusals", "tune.contrast", "tune.benign"),
)


@dataclass(frozen=True)
class Space:
    """What is searched: scores by name, and from where to where the numbers go."""

    scores: tuple[str, ...] = SCORES
    percent: tuple[float, float] = (0.03, 3.0)
    learning_rate: tuple[float, float] = (1e-4, 2e-3)

    def __post_init__(self) -> None:
        if not self.scores:
            raise SafetyNeuronsError("Name at least one score to search with.")
        for name in self.scores:
            if scores.get(name).compares_models:
                raise SafetyNeuronsError(f"The score {name} compares two models and cannot be searched with.")
        for name, (low, high) in (("percent", self.percent), ("learning_rate", self.learning_rate)):
            if not 0 < low <= high:
                raise SafetyNeuronsError(
                    f"The range of {name} goes from a number above 0 upwards, not {low} to {high}."
                )


def auto_tune(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    trials: int = TRIALS,
    space: Space | None = None,
    max_over_refusal: float | None = None,
    listener: Listener | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Search tuning's settings on the run's validation prompts, take the best trade, and tune the run with it.

    The first trial has the run's own settings. A killed search goes on where it stopped: its trials follow from the
    seed, and what came of them is kept. A search of a run that was tuned by one starts from where that one started.
    Trials whose training diverges, or that find no neurons, are left out. The section "auto" of the run's results
    holds all others.

    Args:
        trials: how many settings are tried.
        max_over_refusal: of those that keep over-refusal within this, the one with the least attack success is taken;
            without it the knee of the Pareto front of attack success, over-refusal and divergence.

    Raises:
        SafetyNeuronsError: bad input, no trial that can be trained or is within the limit, or a failure that the
            message explains.
    """
    if trials < 1:
        raise SafetyNeuronsError(f"A search needs at least one trial, not {trials}.")
    if max_over_refusal is not None and not 0 <= max_over_refusal <= 1:
        raise SafetyNeuronsError(f"max_over_refusal is a share from 0 to 1, not {max_over_refusal}.")
    space = space or Space()
    with opened(path, _from_the_start(RunFolder(path), given or {}), listener, command) as work:
        validator = Validator.open(work)
        before = validator.measure_base()
        tried = _search(work, validator, space, trials)
    if not tried:
        raise SafetyNeuronsError(
            f"None of the {trials} trials could be trained. Try more settings (--trials), or lower tune.learning-rate."
        )
    chosen = choose(tried, max_over_refusal)
    run(path, nested(chosen.settings), until="tune", listener=listener, command=command)
    with opened(path, None, listener, command, until="tune") as work:
        after = _measure(work, Validator.open(work), NeuronDelta.load(work.folder.delta))
        section = {
            "base": asdict(before),
            "trials": [asdict(trial) for trial in tried],
            "left_out": trials - len(tried),
            "front": [trial.number for trial in front(tried)],
            "max_over_refusal": max_over_refusal,
            "chosen": chosen.number,
            "tuned": asdict(after),
        }
        return keep_section(work.folder, "auto", section)


def _from_the_start(folder: RunFolder, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings, with those from which the kept search started where the run has those of one of its trials.

    They would be another search's own ones, for the run is tuned with what a search chose before it ends.
    """
    now = own_settings(merged_settings(folder.record().get("settings", {}), {}))
    split = {path: path.split(".") for path in SEARCHED}
    asked = {path: given[part][name] for path, (part, name) in split.items() if name in given.get(part, {})}
    starts = [
        line["start"]
        for line in read_lines(folder.trials)
        if line["settings"] == now and asked.items() <= line["start"].items() and trusted(line["start"])
    ]
    return overridden(given, nested(starts[-1])) if starts else dict(given)


def _search(work: RunContext, validator: Validator, space: Space, trials: int) -> list[Trial]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Sequential and in memory: a killed search is replayed from what is kept of its trials.
    sampler = optuna.samplers.TPESampler(seed=work.settings.seed, n_startup_trials=max(4, trials // 3))
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    kept = {line["key"]: line for line in read_lines(work.folder.trials)}
    start = own_settings(work.settings)
    inputs = stage_fingerprints(work.settings, work.model.identity, work.prompts)["tune"]
    scored: dict[str, ScoredNeurons] = {}
    tried: list[Trial] = []
    with work.listener.task("searching tuning's settings", trials) as advance:
        for number in range(trials):
            asked = study.ask()
            settings = start if number == 0 else _suggest(asked, space)
            key = fingerprint(work.answering, inputs, work.settings.evaluate.answer_tokens, number, settings)
            if key not in kept:
                found = _try(work, validator, settings, scored)
                line = {"key": key, "start": start, "settings": settings, "objectives": found and asdict(found)}
                append_line(work.folder.trials, line)
                kept[key] = line
            values = kept[key]["objectives"]
            if values is None:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(asked, list(values.values()))
                tried.append(Trial(number, settings, Objectives(**values)))
            advance(1)
    return tried


def own_settings(settings: Settings) -> dict[str, Any]:
    """What of a run's settings is searched, by path."""
    values = settings.model_dump(mode="json")
    return {path: values[path.split(".")[0]][path.split(".")[1]] for path in SEARCHED}


def _suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    return {
        "find.score": trial.suggest_categorical("find.score", space.scores),
        "find.percent": trial.suggest_float("find.percent", *space.percent, log=True),
        "tune.learning_rate": trial.suggest_float("tune.learning_rate", *space.learning_rate, log=True),
        "tune.refusals": trial.suggest_int("tune.refusals", 96, 192, step=12),
        "tune.contrast": trial.suggest_int("tune.contrast", 0, 56, step=14),
        "tune.benign": trial.suggest_int("tune.benign", 96, 192, step=12),
        "tune.kl": trial.suggest_categorical("tune.kl", [0.0, 1.0, 2.0]),
    }


def nested(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by path as `Settings` nests them."""
    found: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        section, name = path.split(".")
        found.setdefault(section, {})[name] = value
    return found


def _try(
    work: RunContext, validator: Validator, chosen: Mapping[str, Any], scored: dict[str, ScoredNeurons]
) -> Objectives | None:
    """Tune with these settings, if they can be; refusals are made with the run's own neurons, so that they are made
    once."""
    settings = merged_settings(work.settings.model_dump(mode="json"), nested(chosen))
    name = settings.find.score
    if name not in scored:
        scored[name] = score_as_settings_say(work, name)
    neurons = scored[name].top(settings.find.percent, settings.find.scope, settings.find.selection)
    if not len(neurons):
        work.listener.say(f"A trial is left out: {name} finds no neurons at {settings.find.percent:.2g}%.")
        return None
    corpus = corpus_of(work, settings.tune)
    steps = training_steps(corpus, settings.tune.batch_size, settings.tune.epochs)
    validate = None if settings.tune.patience is None else validator.measure
    with work.listener.task(f"tuning {len(neurons):,} neurons ({name})", steps) as advance:
        try:
            delta = tune(
                work.model, neurons, corpus, settings.tune, seed=settings.seed, validate=validate, advance=advance
            )
        except DivergedError as error:
            work.listener.say(f"A trial is left out. {error}")
            return None
    return _measure(work, validator, delta)


def _measure(work: RunContext, validator: Validator, delta: NeuronDelta) -> Objectives:
    moved = validator.kl_divergence(lambda: delta.apply(work.model))
    with delta.apply(work.model):
        found = validator.measure(delta.digest)
    return Objectives(found.attack_success, found.over_refusal, moved)
