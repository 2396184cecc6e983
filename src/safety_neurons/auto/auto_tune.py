"""`tune --auto`: budget, score, learning rate and mix searched for the trade that suits the user."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from safety_neurons.auto.front import Objectives, Trial, choose, front
from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find import scores
from safety_neurons.find.find import ScoredNeurons
from safety_neurons.progress import Listener
from safety_neurons.run.corpus import corpus_of
from safety_neurons.run.folder import fingerprint, merged_settings
from safety_neurons.run.opened import keep_section, opened
from safety_neurons.run.pipeline import run
from safety_neurons.run.stages import score_as_settings_say
from safety_neurons.run.validation import Validator
from safety_neurons.run.workplace import Workplace
from safety_neurons.settings import Settings
from safety_neurons.storage import append_line, read_lines
from safety_neurons.tune.batches import training_steps
from safety_neurons.tune.delta import NeuronDelta
from safety_neurons.tune.safetune import tune

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
    learning_rate: tuple[float, float] = (1e-4, 4e-3)

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
    trials: int = 12,
    space: Space | None = None,
    max_over_refusal: float | None = None,
    listener: Listener | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Search tuning's settings on the run's validation prompts, take the best trade, and tune the run with it.

    The first trial are the run's own settings. A killed search goes on where it stopped: its trials follow from the
    seed, and what came of them is kept. The section "auto" of the run's results holds all trials.

    Args:
        trials: how many settings are tried.
        max_over_refusal: of those that keep over-refusal within this, the one with the least attack success is taken;
            without it the knee of the Pareto front of attack success, over-refusal and divergence.

    Raises:
        SafetyNeuronsError: bad input, no trial within the limit, or a failure that the message explains.
    """
    if trials < 1:
        raise SafetyNeuronsError(f"A search needs at least one trial, not {trials}.")
    if max_over_refusal is not None and not 0 <= max_over_refusal <= 1:
        raise SafetyNeuronsError(f"max_over_refusal is a share from 0 to 1, not {max_over_refusal}.")
    space = space or Space()
    with opened(path, given, listener, command) as work:
        validator = Validator.open(work)
        before = validator.measure_untouched()
        tried = _search(work, validator, space, trials)
    chosen = choose(tried, max_over_refusal)
    results = run(path, nested(chosen.settings), until="tune", listener=listener, command=command)
    with opened(path, None, listener, command, until="tune") as work:
        after = _measure(work, Validator.open(work), NeuronDelta.load(work.folder.delta))
        section = {
            "untouched": asdict(before),
            "trials": [asdict(trial) for trial in tried],
            "front": [trial.number for trial in front(tried)],
            "max_over_refusal": max_over_refusal,
            "chosen": chosen.number,
            "tuned": asdict(after),
        }
        results = keep_section(work.folder, "auto", section)
    return results


def _search(work: Workplace, validator: Validator, space: Space, trials: int) -> list[Trial]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Sequential and in memory: a killed search is replayed from what is kept of its trials.
    sampler = optuna.samplers.TPESampler(seed=work.settings.seed, n_startup_trials=max(4, trials // 3))
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    kept = {line["key"]: line for line in read_lines(work.folder.trials)}
    scored: dict[str, ScoredNeurons] = {}
    tried: list[Trial] = []
    with work.listener.task("searching tuning's settings", trials) as advance:
        for number in range(trials):
            asked = study.ask()
            settings = own_settings(work.settings) if number == 0 else _suggest(asked, space)
            key = fingerprint(work.answering, number, settings, work.settings.model_dump(mode="json"))
            if key not in kept:
                objectives = _try(work, validator, settings, scored)
                kept[key] = {"key": key, "settings": settings, "objectives": asdict(objectives)}
                append_line(work.folder.trials, kept[key])
            objectives = Objectives(**kept[key]["objectives"])
            study.tell(asked, list(asdict(objectives).values()))
            tried.append(Trial(number, settings, objectives))
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
        "tune.refusals": trial.suggest_int("tune.refusals", 48, 144, step=12),
        "tune.contrast": trial.suggest_int("tune.contrast", 0, 56, step=14),
        "tune.benign": trial.suggest_int("tune.benign", 72, 144, step=12),
        "tune.kl": trial.suggest_categorical("tune.kl", [0.0, 0.3, 1.0]),
    }


def nested(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by path as `Settings` nests them."""
    found: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        section, name = path.split(".")
        found.setdefault(section, {})[name] = value
    return found


def _try(
    work: Workplace, validator: Validator, chosen: Mapping[str, Any], scored: dict[str, ScoredNeurons]
) -> Objectives:
    """Tune with these settings; refusals are made with the run's own neurons, so that they are made once."""
    settings = merged_settings(work.settings.model_dump(mode="json"), nested(chosen))
    name = settings.find.score
    if name not in scored:
        scored[name] = score_as_settings_say(work, name)
    neurons = scored[name].top(settings.find.percent)
    corpus = corpus_of(work, settings.tune)
    steps = training_steps(corpus, settings.tune.batch_size, settings.tune.epochs)
    with work.listener.task(f"tuning {len(neurons):,} neurons ({name})", steps) as advance:
        delta = tune(work.model, neurons, corpus, **asdict(settings.tune.training(settings.seed)), advance=advance)
    return _measure(work, validator, delta)


def _measure(work: Workplace, validator: Validator, delta: NeuronDelta) -> Objectives:
    moved = validator.divergence(lambda: delta.apply(work.model))
    with delta.apply(work.model):
        found = validator.measure(delta.digest)
    return Objectives(found.attack_success, found.over_refusal, moved)
