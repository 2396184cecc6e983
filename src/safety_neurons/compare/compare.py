"""`compare_scores`: what every score finds, what calibrating it does, how stable it is and what it costs."""

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from safety_neurons.calibrate.dose import dose
from safety_neurons.compare.effects import DIRECTIONS, Effect, effect, moved_by, rows, verdicts
from safety_neurons.compare.scored import Scored, Training, score_all
from safety_neurons.compare.sets import jaccard, mean_jaccard, mean_spearman, of_size
from safety_neurons.compare.tables import markdown
from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find import scores
from safety_neurons.find.read import write_norms
from safety_neurons.progress import Listener, Silence
from safety_neurons.prompts import load_prompts
from safety_neurons.run.folder import RunFolder, merged_settings
from safety_neurons.run.kept_prompts import KeptPrompts
from safety_neurons.run.workplace import Workplace
from safety_neurons.storage import disk_errors, write_json, write_text

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
    work = Workplace(folder, settings, prompts, listener)
    try:
        with disk_errors(path), filelock.FileLock(path / ".lock", timeout=0):
            return _compare(work, list(budgets), overlap_at, seeds, equal_dose, command)
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
    work: Workplace, budgets: list[float], overlap_at: float, seeds: int, equal_dose: bool, command: str
) -> dict[str, Any]:
    settings, other = work.settings, work.other_model
    names = [name for name in scores.names() if other is not None or not scores.get(name).compares_models]
    harmful, benign = (
        tuple(prompt.text for prompt in work.chosen(name, "train", settings.find.prompts))
        for name in ("harmful", "benign")
    )
    training = Training(harmful, benign, settings, seeds)
    scored = score_all(work.model, other, names, training, work.folder.path / "scores", work.listener)
    results = {
        "schema": SCHEMA,
        "model": {
            "name": work.model.name,
            "identity": work.model.identity,
            "neurons": sum(site.width for site in work.model.sites),
            "dtype": str(work.model.model.dtype).removeprefix("torch."),
            "device": str(work.model.device),
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
        "scores": [_about(name, one, overlap_at, work) for name, one in scored.items()],
        "rows": [],
    }
    _measure_effects(work, scored, budgets, results)
    return results


def _positions(work: Workplace) -> int:
    """How many positions at the prompts' ends are read anew under each condition: those that are calibrated."""
    reach = work.settings.calibrate.prompt_positions
    if reach == "all":
        raise SafetyNeuronsError(
            "compare-scores reads the beginnings of the prompts once for all scores, so that it cannot calibrate the "
            "whole prompt: give --calibrate.prompt-positions a number, or 'template'."
        )
    return max(1, work.model.template_tail if reach == "template" else reach)


def _overlap(scored: Mapping[str, Scored], percent: float) -> dict[str, Any]:
    """Shared neurons of every two scores' sets at one budget, as Jaccard's index."""
    sets = [of_size(one.whole, percent) for one in scored.values()]
    matrix = [[jaccard(first, second) for second in sets] for first in sets]
    return {"percent": percent, "scores": list(scored), "jaccard": matrix}


def _about(name: str, one: Scored, percent: float, work: Workplace) -> dict[str, Any]:
    """What is to be said of a score besides its effects."""
    score, significant = one.whole.score, one.whole.significant
    with work.listener.task(f"stability of {name}", 1) as advance:
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
    work: Workplace, scored: Mapping[str, Scored], budgets: list[float], results: dict[str, Any]
) -> None:
    """Ask under every condition, budget by budget; the files are written after each."""
    test = {name: work.chosen(name, "test", work.settings.evaluate.prompts) for name in ("harmful", "benign")}
    each = sum(len(prompts) for prompts in test.values())
    texts = [[work.model.render(prompt.text) for prompt in prompts] for prompts in test.values()]
    positions = _positions(work)
    kept = KeptPrompts.read(work.model, texts, positions, work.settings.batch_size)
    effects: list[Effect] = []
    with work.listener.task("untouched model", each) as advance:
        for toward, name, moved in DIRECTIONS:
            found = verdicts(work, kept, work.untouched(), name, test[name], advance)
            effects.append(Effect(None, toward, name, moved, found))
    norms = write_norms(work.model).norm_2
    for percent in budgets:
        sets = {score: of_size(one.whole, percent) for score, one in scored.items()}
        units = {score: dose(neurons, norms) for score, neurons in sets.items()}
        with work.listener.task(f"calibrating {percent:g}% of the neurons", each * len(scored)) as advance:
            for score in scored:
                # An empty set adds nothing, whatever the alpha.
                scaled = results["equal_dose"] and units[score] > 0
                factor = units[REFERENCE] / units[score] if scaled else 1.0
                by = moved_by(work, score, percent, sets[score], units[score], factor)
                for direction in DIRECTIONS:
                    effects.append(effect(work, kept, by, direction, test[direction[1]], advance))
        results["rows"] = rows(effects)
        results["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(work.folder.path / "scores.json", results)
        write_text(work.folder.path / "scores.md", markdown(results))
