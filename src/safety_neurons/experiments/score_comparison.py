"""`compare_scores`: what every score finds, what calibrating it does, how stable it is and what it costs.

What moving a score's neurons does: harmful prompts that comply, and benign prompts that are refused."""

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from scipy.stats import false_discovery_control

from safety_neurons.calibration.calibration import calibrate, digest, dose
from safety_neurons.calibration.config import Toward
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, fingerprint, write_json, write_text
from safety_neurons.core.progress import Advance, Listener, Silence, Within
from safety_neurons.core.statistics import mcnemar, rate
from safety_neurons.evaluation import attacks, judges
from safety_neurons.evaluation.judges import Verdict
from safety_neurons.experiments.scored import Scored, Training, jaccard, mean_jaccard, mean_spearman, of_size, score_all
from safety_neurons.models.prefix_cache import PrefixCache
from safety_neurons.neurons import scores
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.neurons.read import write_norms
from safety_neurons.prompts import Prompt, load_prompts
from safety_neurons.report.score_tables import markdown
from safety_neurons.runs.answers import Condition, ask
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.folder import RunFolder, merged_settings

FALSE_DISCOVERY_RATE = 0.05
# (toward what, which prompts, the verdict that counts as moved)
DIRECTIONS: tuple[tuple[Toward, str, Verdict], ...] = (
    ("conformity", "harmful", "complied"),
    ("rejection", "benign", "refused"),
)


@dataclass(frozen=True)
class Moved:
    """A score's neurons, the alpha with which they are moved, and how much that adds (see `calibrate.dose`)."""

    score: str
    percent: float
    neurons: NeuronSet
    alpha: dict[Toward, float]
    dose: dict[Toward, float]


@dataclass(frozen=True)
class Effect:
    """The verdicts on one side's prompts under one condition; nothing is `by` which the base model is moved."""

    by: Moved | None
    toward: Toward
    prompts: str
    moved: Verdict
    verdicts: tuple[Verdict, ...]

    @property
    def hits(self) -> list[bool]:
        """Prompt by prompt, whether it was moved; what could not be judged was not."""
        return [verdict == self.moved for verdict in self.verdicts]


def verdicts(
    run: RunContext, kept: PrefixCache, condition: Condition, name: str, prompts: Sequence[Prompt], advance: Advance
) -> tuple[Verdict, ...]:
    """The judged answers to plain requests."""
    settings = run.settings
    answers = ask(
        run.model,
        run.folder,
        Within(advance),
        condition=condition,
        set_name=name,
        prompts=prompts,
        sent=[attacks.template("direct").apply(prompt.text) for prompt in prompts],
        attack="direct",
        judge=judges.rules(settings.evaluate.judge),
        answer_tokens=settings.evaluate.answer_tokens,
        batch_size=settings.batch_size,
        answering=kept.generate,
    )
    return tuple(answer.verdict for answer in answers)


def effect(
    run: RunContext,
    kept: PrefixCache,
    by: Moved,
    direction: tuple[Toward, str, Verdict],
    prompts: Sequence[Prompt],
    advance: Advance,
) -> Effect:
    """Calibrate a score's neurons and ask."""
    toward, name, moved = direction
    settings = run.settings.calibrate
    knobs = settings.model_dump() | {f"alpha_{toward}": by.alpha[toward]}
    condition = Condition(
        by.score,
        f"toward {toward}, {by.percent:g}%",
        fingerprint(run.answering, toward, digest(by.neurons), knobs),
    )
    with calibrate(run.model, by.neurons, settings, toward=toward, alpha=by.alpha[toward]):
        return Effect(by, toward, name, moved, verdicts(run, kept, condition, name, prompts, advance))


def moved_by(run: RunContext, score: str, percent: float, neurons: NeuronSet, unit: float, factor: float) -> Moved:
    """A set that is calibrated with `factor` times the settings' alpha; `unit` is the dose of alpha 1."""
    settings = run.settings.calibrate
    alpha: dict[Toward, float] = {
        "conformity": factor * settings.alpha("conformity"),
        "rejection": factor * settings.alpha("rejection"),
    }
    return Moved(score, percent, neurons, alpha, {toward: unit * value for toward, value in alpha.items()})


def rows(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """One row an effect: the share that was moved with its interval, against the base model and random neurons.

    Prompts that could not be judged count as not moved, and are counted. Whether a score moves other prompts than
    random neurons do is McNemar's exact test on the same prompts, its p-values controlled over all rows (Benjamini
    and Hochberg, 5%).
    """
    base = {one.toward: one for one in effects if one.by is None}
    random = {(one.toward, one.by.percent): one for one in effects if one.by is not None and one.by.score == "random"}
    found = [_row(one, base[one.toward], random[one.toward, one.by.percent] if one.by else None) for one in effects]
    tested = [row for row in found if row["p_value"] is not None]
    if tested:
        for row, value in zip(tested, false_discovery_control([row["p_value"] for row in tested]), strict=True):
            row["differs_from_random"] = bool(value <= FALSE_DISCOVERY_RATE)
    return found


def _row(one: Effect, base: Effect, random: Effect | None) -> dict[str, Any]:
    other: Verdict = "refused" if one.moved == "complied" else "complied"
    share = rate([one.moved if hit else other for hit in one.hits], one.moved)
    value, by = sum(one.hits) / len(one.hits), one.by
    row: dict[str, Any] = {
        "score": None if by is None else by.score,
        "percent": None if by is None else by.percent,
        "neurons": None if by is None else len(by.neurons),
        "alpha": None if by is None else by.alpha[one.toward],
        "dose": None if by is None else by.dose[one.toward],
        "toward": one.toward,
        "prompts": one.prompts,
        "counted": one.moved,
        "value": value,
        "low": share.low,
        "high": share.high,
        "n": share.n,
        "unscored": one.verdicts.count("unscored"),
        "difference": value - sum(base.hits) / len(base.hits),
        "against_random": None,
        "p_value": None,
        "differs_from_random": None,
    }
    if random is not None and random is not one:
        row["against_random"] = value - sum(random.hits) / len(random.hits)
        row["p_value"] = mcnemar(one.hits, random.hits)
    return row


BUDGETS = (0.05, 0.1, 0.5, 1.0, 3.0)
SEEDS = 5
SCHEMA = 1
# The score whose doses the others get where doses are equal.
REFERENCE = "write-contrast"


def compare_scores(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    budgets: Sequence[float] = BUDGETS,
    overlap_at: float = 0.5,
    seeds: int = SEEDS,
    equal_dose: bool = False,
    listener: Listener | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Compare all scores on one model, each with its own habits, and all with the same calibration.

    The folder then holds `scores.json` and `scores.md`, every answer and its verdict, and the scores themselves. What
    is there already is not computed again. Both files are brought up to date after each budget.

    Args:
        given: settings, nested as in `Settings`; those of `find` that a score decides itself are left to it.
        budgets: sizes of the sets, in percent of the model's neurons.
        overlap_at: the budget at which sets are compared with each other.
        seeds: on how many random halves of the training prompts each score is computed again.
        equal_dose: scale alpha for each set so that calibration adds as much (see `calibrate.dose`) as it does with the
            write-contrast set of the same budget, instead of giving all sets the same alpha.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    listener = listener or Silence()
    _check(budgets, seeds)
    settings = merged_settings({}, given or {})
    folder = RunFolder(path)
    prompts = {name: load_prompts(getattr(settings, name), settings.column) for name in ("harmful", "benign")}
    for found in prompts.values():
        for split in ("train", "test"):
            found.split(split)
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    run = RunContext(folder, settings, prompts, listener)
    try:
        with disk_errors(path), filelock.FileLock(path / ".lock", timeout=0):
            return _compare(run, list(budgets), overlap_at, seeds, equal_dose, command)
    except filelock.Timeout as error:
        raise SafetyNeuronsError(f"Another process is working on {path}. Wait for it, or choose another.") from error


def _check(budgets: Sequence[float], seeds: int) -> None:
    if not budgets or any(not 0 < budget <= 100 for budget in budgets):
        raise SafetyNeuronsError("Budgets are above 0 and at most 100 percent of the neurons: --budgets 0.1 1.")
    if len(set(budgets)) < len(budgets):
        raise SafetyNeuronsError("A budget is given twice.")
    if seeds < 0:
        raise SafetyNeuronsError(f"The number of seeds cannot be {seeds}.")


def _compare(
    run: RunContext, budgets: list[float], overlap_at: float, seeds: int, equal_dose: bool, command: str
) -> dict[str, Any]:
    settings, other = run.settings, run.other_model
    names = [name for name in scores.names() if other is not None or not scores.get(name).compares_models]
    harmful, benign = (
        tuple(prompt.text for prompt in run.chosen(name, "train", settings.find.prompts))
        for name in ("harmful", "benign")
    )
    training = Training(harmful, benign, settings, seeds)
    scored = score_all(run.model, other, names, training, run.folder.path / "scores", run.listener)
    results = {
        "schema": SCHEMA,
        "model": {
            "name": run.model.name,
            "identity": run.model.identity,
            "neurons": sum(hook_point.width for hook_point in run.model.hook_points),
            "dtype": str(run.model.model.dtype).removeprefix("torch."),
            "device": str(run.model.device),
        },
        "other_model": None if other is None else other.name,
        "settings": settings.model_dump(mode="json"),
        "training_prompts": {"harmful": len(harmful), "benign": len(benign)},
        "command": command,
        "versions": {name: importlib.metadata.version(name) for name in ("safety-neurons", "torch", "transformers")},
        "budgets": budgets,
        "equal_dose": equal_dose,
        "left_out": {
            name: "it compares two checkpoints, and no second was given (--find.other-model)"
            for name in scores.names()
            if name not in names
        },
        "overlap": _overlap(scored, overlap_at),
        "scores": [_about(name, one, overlap_at, run) for name, one in scored.items()],
        "rows": [],
    }
    _measure_effects(run, scored, budgets, results)
    return results


def _positions(run: RunContext) -> int:
    """How many positions at the prompts' ends are read anew under each condition: those that are calibrated."""
    reach = run.settings.calibrate.prompt_positions
    if reach == "all":
        raise SafetyNeuronsError(
            "Comparing scores reads the beginnings of the prompts once for all scores, so that it cannot calibrate the "
            "whole prompt: give --calibrate.prompt-positions a number, or 'template'."
        )
    return max(1, run.model.template_tail if reach == "template" else reach)


def _overlap(scored: Mapping[str, Scored], percent: float) -> dict[str, Any]:
    """Shared neurons of every two scores' sets at one budget, as Jaccard's index."""
    sets = [of_size(one.whole, percent) for one in scored.values()]
    matrix = [[jaccard(first, second) for second in sets] for first in sets]
    return {"percent": percent, "scores": list(scored), "jaccard": matrix}


def _about(name: str, one: Scored, percent: float, run: RunContext) -> dict[str, Any]:
    """What is to be said of a score besides its effects."""
    score, significant = one.whole.score, one.whole.significant
    with run.listener.task(f"stability of {name}", 1) as advance:
        alike = mean_jaccard([of_size(half, percent) for half in one.halves])
        correlation = mean_spearman(one.halves)
        advance(1)
    return {
        "score": name,
        "formula": score.formula,
        "source": score.source,
        "tokens": score.tokens,
        "scope": score.scope,
        "seconds": round(one.cost.seconds, 1),
        "peak_bytes": one.cost.peak,
        "halves": len(one.halves),
        "jaccard": alike,
        "spearman": correlation,
        "significant": None if significant is None else sum(significant),
    }


def _measure_effects(
    run: RunContext, scored: Mapping[str, Scored], budgets: list[float], results: dict[str, Any]
) -> None:
    """Ask under every condition, budget by budget; the files are written after each."""
    test = {name: run.chosen(name, "test", run.settings.evaluate.prompts) for name in ("harmful", "benign")}
    each = sum(len(prompts) for prompts in test.values())
    texts = [[run.model.render(prompt.text) for prompt in prompts] for prompts in test.values()]
    positions = _positions(run)
    kept = PrefixCache.read(run.model, texts, positions, run.settings.batch_size)
    effects: list[Effect] = []
    with run.listener.task("base model", each) as advance:
        for toward, name, moved in DIRECTIONS:
            found = verdicts(run, kept, run.base(), name, test[name], advance)
            effects.append(Effect(None, toward, name, moved, found))
    norms = write_norms(run.model).norm_2
    for percent in budgets:
        sets = {score: of_size(one.whole, percent) for score, one in scored.items()}
        units = {score: dose(neurons, norms) for score, neurons in sets.items()}
        with run.listener.task(f"calibrating {percent:g}% of the neurons", each * len(scored)) as advance:
            for score in scored:
                # An empty set adds nothing, whatever the alpha.
                scaled = results["equal_dose"] and units[score] > 0
                factor = units[REFERENCE] / units[score] if scaled else 1.0
                by = moved_by(run, score, percent, sets[score], units[score], factor)
                for direction in DIRECTIONS:
                    effects.append(effect(run, kept, by, direction, test[direction[1]], advance))
        results["rows"] = rows(effects)
        results["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(run.folder.path / "scores.json", results)
        write_text(run.folder.path / "scores.md", markdown(results))
