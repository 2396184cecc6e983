"""`auto_tune`: search budget, score, learning rate and data mix for the best trade-off, and tune the run with it.

The objectives are attack success, over-refusal and KL divergence on the validation prompts, after pass and scale were
selected. The margin of over-refusal that selects these (tune.max_over_refusal) also selects the trial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Annotated, Any

import optuna
from pydantic import AfterValidator, JsonValue

from safety_neurons.core.errors import DivergedError, SafetyNeuronsError
from safety_neurons.core.fields import Number
from safety_neurons.core.files import fingerprint
from safety_neurons.core.progress import Listener
from safety_neurons.core.records import JsonlCache, Line
from safety_neurons.core.trust import trusted
from safety_neurons.neurons import scores
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.report.results import RunResults, read_results
from safety_neurons.report.scale_curve import ScaleCurve, over_refusal
from safety_neurons.runs.artifacts import load_delta
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.corpus import corpus_of
from safety_neurons.runs.find import score_neurons_of
from safety_neurons.runs.folder import RunFolder, merged_settings, overridden, stage_fingerprints
from safety_neurons.runs.opened import keep_section, opened
from safety_neurons.runs.selection import select_delta
from safety_neurons.runs.validation import Validation, Validator
from safety_neurons.settings import Settings
from safety_neurons.tuning.batches import training_steps
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.safetune import tune

TRIALS = 12
SCORES = ("gradient", "write-contrast")
# The settings that are searched.
SEARCHED = (
    *("find.score", "find.percent", "tune.learning_rate", "tune.kl"),
    *("tune.refusals", "tune.contrast", "tune.benign"),
)


@dataclass(frozen=True)
class Space:
    """The search space: names of scores, and the ranges of the budget (percent of the neurons) and learning rate."""

    scores: tuple[str, ...] = SCORES
    percent: tuple[float, float] = (0.03, 3.0)
    learning_rate: tuple[float, float] = (1e-4, 2e-3)

    def __post_init__(self) -> None:
        if not self.scores:
            raise SafetyNeuronsError("Name at least one score to search with.")
        for name in self.scores:
            if scores.get(name).compares_models:
                raise SafetyNeuronsError(
                    f"The score {name} compares two models, so it cannot be searched with. Choose another."
                )
        for name, (low, high) in (("percent", self.percent), ("learning_rate", self.learning_rate)):
            if not 0 < low <= high:
                raise SafetyNeuronsError(f"The range of {name} must satisfy 0 < low <= high, not {low} to {high}.")


@dataclass(frozen=True)
class Objectives(Validation):
    """The validation rates and the KL divergence from the base model in nats per token; lower is better."""

    kl_divergence: Number


def _searched(settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The searched settings, each with a value that is allowed."""
    if settings.keys() != set(SEARCHED):
        raise ValueError(f"these are not the settings that are searched: {', '.join(SEARCHED)}")
    try:
        Settings.checked(nested(settings))
    except SafetyNeuronsError as error:
        raise ValueError(str(error)) from error
    return settings


SearchedSettings = Annotated[dict[str, JsonValue], AfterValidator(_searched)]


class CachedTrial(Line):
    """A trial and the settings that its search started from; None for one that failed: a line of trials.jsonl."""

    start: SearchedSettings
    settings: SearchedSettings
    objectives: Objectives | None


@dataclass(frozen=True)
class Trial:
    """One tuning: its settings by dotted name ("tune.learning_rate"), and the objectives that it reached."""

    number: int
    settings: dict[str, Any]
    objectives: Objectives


def auto_tune(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    trials: int = TRIALS,
    space: Space | None = None,
    listener: Listener | None = None,
    command: str = "",
) -> RunResults:
    """Search tuning settings on the run's validation prompts, and tune the run with the best trade-off.

    The first trial has the run's own settings. A killed search continues where it stopped: its trials follow from the
    seed, and their objectives are cached. Searching again in a run that a search has tuned starts from the settings
    of that search. Trials that diverge or find no neurons are left out. Returns the run's results, with the section
    "auto".

    Args:
        given: settings that override the run's own.

    Raises:
        SafetyNeuronsError: bad input, no trial that can be trained, or a failure that the message explains.
    """
    if trials < 1:
        raise SafetyNeuronsError(f"A search needs at least one trial, not {trials}.")
    with RunFolder(path).held():
        return _auto_tune(path, given or {}, trials, space or Space(), listener, command)


def _auto_tune(
    path: Path,
    given: Mapping[str, Any],
    trials: int,
    space: Space,
    listener: Listener | None,
    command: str,
) -> RunResults:
    start = _from_the_start(RunFolder(path), given)
    with opened(path, start, listener, command, uses=("find", "tune")) as context:
        if not context.settings.tune.select:
            raise SafetyNeuronsError("A search compares its trials on validation prompts: switch tune.select on.")
        margin = context.settings.tune.max_over_refusal
        tried = _search(context, space, trials)
    if not tried:
        raise SafetyNeuronsError(
            f"None of the {trials} trials could be trained. Raise trials, or lower tune.learning_rate."
        )
    chosen = choose(tried, margin)
    # What was given holds for the trials and for what they lead to.
    final = overridden(given, nested(chosen.settings))
    with opened(path, final, listener, command, until="tune", is_told=True) as context:
        training = read_results(context.folder.results).training
        curve = training.scale_curve if training else None
        assert curve is not None
        assert curve.base.attack_success is not None
        after = _objectives(context, load_delta(context.folder), curve)
        section = {
            "base": {"attack_success": curve.base.attack_success.value, "over_refusal": 0.0},
            "trials": [asdict(trial) for trial in tried],
            "left_out": trials - len(tried),
            "front": [trial.number for trial in front(tried)],
            "max_over_refusal": margin,
            "chosen": chosen.number,
            "tuned": asdict(after),
        }
        return keep_section(context, "auto", section)


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front: the trials that no other trial dominates."""
    return [trial for trial in trials if not any(_dominates(other, trial) for other in trials)]


def _dominates(one: Trial, other: Trial) -> bool:
    pairs = list(zip(astuple(one.objectives), astuple(other.objectives), strict=True))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


def choose(trials: Sequence[Trial], max_over_refusal: float) -> Trial:
    """The trial with the least attack success within the margin of over-refusal; without any, the nearest to it."""

    def harm(trial: Trial) -> tuple[float, ...]:
        return max(0.0, round(trial.objectives.over_refusal - max_over_refusal, 9)), *astuple(trial.objectives)

    return min(trials, key=harm)


def own_settings(settings: Settings) -> dict[str, Any]:
    """A run's values of the searched settings, by dotted name."""
    values = settings.model_dump(mode="json")
    return {path: values[path.split(".")[0]][path.split(".")[1]] for path in SEARCHED}


def nested(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by dotted name, nested as in `Settings`."""
    found: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        section, name = path.split(".")
        found.setdefault(section, {})[name] = value
    return found


def _from_the_start(folder: RunFolder, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings, with the start of an earlier search if the run has the settings of one of its trials.

    Without this, repeating a search would start from what the earlier one chose, and so be another search.
    """
    record = folder.record()
    now = own_settings(merged_settings(record.settings if record else {}, {}))
    split = {path: path.split(".") for path in SEARCHED}
    asked = {path: given[part][name] for path, (part, name) in split.items() if name in given.get(part, {})}
    starts = [
        line.start
        for line in JsonlCache.read(folder.trials, CachedTrial).entries.values()
        # The file may come from somebody else: a start has no other settings, and names no code.
        if line.start.keys() == now.keys() and line.settings == now
        if asked.items() <= line.start.items() and trusted(line.start)
    ]
    return overridden(given, nested(starts[-1])) if starts else dict(given)


def _search(context: RunContext, space: Space, trials: int) -> list[Trial]:
    if context.settings.tune.percent is not None:
        raise SafetyNeuronsError(
            "The search chooses which neurons to tune (find.percent), and tune.percent names others. Omit "
            "tune.percent, or search in a run without it."
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Sequential and in memory: a killed search is replayed from the cached objectives.
    sampler = optuna.samplers.TPESampler(seed=context.settings.seed, n_startup_trials=max(4, trials // 3))
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    cached = JsonlCache.read(context.folder.trials, CachedTrial)
    start = own_settings(context.settings)
    inputs = stage_fingerprints(context.settings, context.model.identity, context.prompts)["tune"]
    scored: dict[str, ScoredNeurons] = {}
    tried: list[Trial] = []
    with context.listener.task("searching tuning's settings", trials) as advance:
        for number in range(trials):
            asked = study.ask()
            settings = start if number == 0 else _suggest(asked, space)
            key = fingerprint(
                context.engine.identity, inputs, context.settings.evaluate.answer_tokens, number, settings
            )
            if key not in cached.entries:
                found = _try(context, settings, scored)
                cached.add(CachedTrial(key=key, start=start, settings=settings, objectives=found))
            objectives = cached.entries[key].objectives
            if objectives is None:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(asked, list(astuple(objectives)))
                tried.append(Trial(number, settings, objectives))
            advance(1)
    return tried


def _suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    return {
        "find.score": trial.suggest_categorical("find.score", space.scores),
        "find.percent": trial.suggest_float("find.percent", *space.percent, log=True),
        "tune.learning_rate": trial.suggest_float("tune.learning_rate", *space.learning_rate, log=True),
        "tune.refusals": trial.suggest_int("tune.refusals", 100, 340, step=20),
        "tune.contrast": trial.suggest_int("tune.contrast", 0, 300, step=60),
        "tune.benign": trial.suggest_int("tune.benign", 100, 340, step=20),
        "tune.kl": trial.suggest_categorical("tune.kl", [0.0, 1.0, 2.0]),
    }


def _try(context: RunContext, chosen: Mapping[str, Any], scored: dict[str, ScoredNeurons]) -> Objectives | None:
    """Tune with these settings, and select pass and scale as in a run; None if the trial finds no neurons or diverges.

    All trials train on refusals made with the run's own neurons, so that these are generated once.
    """
    settings = Settings.checked(overridden(context.settings.model_dump(), nested(chosen)))
    name = settings.find.score
    if name not in scored:
        scored[name] = score_neurons_of(context, name)
    neurons = scored[name].top(settings.find.percent, settings.find.scope, settings.find.selection)
    if not len(neurons):
        context.listener.say(f"A trial is left out: {name} finds no neurons at {settings.find.percent:.2g}%.")
        return None
    corpus = corpus_of(context, settings.tune)
    steps = training_steps(corpus, settings.tune.batch_size, settings.tune.epochs)
    with context.listener.task(f"tuning {len(neurons):,} neurons ({name})", steps) as advance:
        try:
            trained = tune(context.model, neurons, corpus, settings.tune, seed=settings.seed, advance=advance)
        except DivergedError as error:
            context.listener.say(f"A trial is left out. {error}")
            return None
    delta, curve = select_delta(context, trained, settings.tune)
    assert curve is not None
    return _objectives(context, delta, curve)


def _objectives(context: RunContext, delta: NeuronDelta, curve: ScaleCurve) -> Objectives:
    """Those of the selected pass and scale; refusing less than the base model is no over-refusal."""
    validator = Validator.open(context, context.settings.tune.validation_prompts)
    divergence = validator.kl_divergence(lambda: delta.apply(context.model))
    attacks = curve.selection.attack_success
    assert attacks is not None
    return Objectives(attacks.value or 0.0, max(0.0, over_refusal(curve.selection, curve.base)), divergence)
