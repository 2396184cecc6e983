"""`compare_scores`: for every neuron score, the effect of calibrating its neurons, its stability and its cost."""

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import false_discovery_control

from safety_neurons.calibration.calibration import dose
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import write_json, write_text
from safety_neurons.core.locks import locked
from safety_neurons.core.progress import Advance, Listener, Silence
from safety_neurons.core.statistics import Verdict, mcnemar, share
from safety_neurons.experiments.intervention import DIRECTIONS, CausalDirection, Intervention, InterventionRunner
from safety_neurons.experiments.scored import (
    ResampledScore,
    TrainingPrompts,
    jaccard,
    mean_jaccard,
    mean_spearman,
    of_size,
    score_all,
)
from safety_neurons.neurons import scores
from safety_neurons.neurons.read import write_norms
from safety_neurons.prompts import load_prompts, tell
from safety_neurons.report.exports import scores_markdown
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.folder import RunFolder, merged_settings
from safety_neurons.runs.outputs import check_output

BUDGETS = (0.05, 0.1, 0.5, 1.0, 3.0)
SEEDS = 5
SCHEMA = 1
FALSE_DISCOVERY_RATE = 0.05
# With equal_dose, the score whose doses the others get.
REFERENCE = "write-contrast"


@dataclass(frozen=True)
class ScoreEffect:
    """The verdicts on the prompts that an intervention should move, in one direction; without one, the base model's.

    The intervention's subject is the score, `percent` the budget of its neurons, and `dose` the summed length of what
    is added (`calibration.dose`).
    """

    direction: CausalDirection
    verdicts: tuple[Verdict, ...]
    intervention: Intervention | None = None
    percent: float | None = None
    dose: float | None = None

    @property
    def score(self) -> str | None:
        return None if self.intervention is None else self.intervention.subject

    @property
    def hits(self) -> list[bool]:
        """Prompt by prompt, whether it moved; an unscored answer did not."""
        return [verdict == self.direction.verdict for verdict in self.verdicts]


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
    """Compare all scores on one model, each with its own tokens and scope, all with the same calibration.

    The folder then holds `scores.json` and `scores.md`, all answers and verdicts, and the scores. Work that it holds
    is not repeated. Both files are updated after each budget. Returns the content of `scores.json`.

    Args:
        given: settings, nested as in `Settings`. Those of `find` that a score determines are ignored.
        budgets: sizes of the sets, in percent of the model's neurons.
        overlap_at: the budget at which sets are compared with each other.
        seeds: number of random halves of the training prompts on which each score is computed again.
        equal_dose: scale alpha for each set so that its dose (`calibration.dose`) is that of the write-contrast set of
            the same budget, instead of the same alpha for all sets.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    if not budgets or any(not 0 < budget <= 100 for budget in budgets):
        raise SafetyNeuronsError("budgets must be above 0 and at most 100 percent of the neurons, such as 0.1 and 1.")
    if len(set(budgets)) < len(budgets):
        raise SafetyNeuronsError("A budget is given twice in budgets. Give each once.")
    if seeds < 0:
        raise SafetyNeuronsError(f"seeds must be at least 0, not {seeds}.")
    settings = merged_settings({}, given or {})
    if settings.calibrate.prompt_positions == "all":
        raise SafetyNeuronsError(
            "Comparing scores caches the beginnings of the prompts for all scores, so it cannot calibrate whole "
            "prompts: set calibrate.prompt_positions to a number, or to 'template'."
        )
    prompts = {
        name: load_prompts(getattr(settings, name), settings.column, settings.data_dir)
        for name in ("harmful", "benign")
    }
    for found in prompts.values():
        for split in ("train", "test"):
            found.split(split)
    run = RunContext(RunFolder(path), settings, prompts, listener or Silence(), given or {}, command)
    tell(prompts, run.listener)
    check_output(path, "scores.json", SCHEMA, "comparison of scores")
    with locked(path):
        return _compare(run, list(budgets), overlap_at, seeds, equal_dose)


def _compare(run: RunContext, budgets: list[float], overlap_at: float, seeds: int, equal_dose: bool) -> dict[str, Any]:
    settings, other = run.settings, run.other_model
    names = [name for name in scores.names() if other is not None or not scores.get(name).compares_models]
    harmful, benign = (
        tuple(prompt.text for prompt in run.split(name, "train", settings.find.prompts))
        for name in ("harmful", "benign")
    )
    training = TrainingPrompts(harmful, benign, settings, seeds)
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
        "settings": settings.to_record(),
        "training_prompts": {"harmful": len(harmful), "benign": len(benign)},
        "command": run.command,
        "versions": {name: importlib.metadata.version(name) for name in ("safety-neurons", "torch", "transformers")},
        "budgets": budgets,
        "equal_dose": equal_dose,
        "left_out": {
            name: "it compares two checkpoints, and find.other_model does not name the second"
            for name in scores.names()
            if name not in names
        },
        "overlap": _overlap(scored, overlap_at),
        "scores": [_properties(name, one, overlap_at, run) for name, one in scored.items()],
        "rows": [],
    }
    _measure_effects(run, scored, results)
    return results


def _overlap(scored: Mapping[str, ResampledScore], percent: float) -> dict[str, Any]:
    """The Jaccard index of every two scores' sets at one budget."""
    sets = [of_size(one.whole, percent) for one in scored.values()]
    matrix = [[jaccard(first, second) for second in sets] for first in sets]
    return {"percent": percent, "scores": list(scored), "jaccard": matrix}


def _properties(name: str, one: ResampledScore, percent: float, run: RunContext) -> dict[str, Any]:
    """A score's definition, stability over the halves, and cost."""
    score, significant = one.whole.score, one.whole.significant
    with run.listener.task(f"stability of {name}", 1) as advance:
        overlap = mean_jaccard([of_size(half, percent) for half in one.halves])
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
        "jaccard": overlap,
        "spearman": correlation,
        "significant": None if significant is None else sum(significant),
    }


def _measure_effects(run: RunContext, scored: Mapping[str, ResampledScore], results: dict[str, Any]) -> None:
    """Calibrate every score's set at every budget and ask the test prompts; writes both files after each budget."""
    settings = run.settings.calibrate
    test = {name: run.split(name, "test", run.settings.evaluate.prompts) for name in ("harmful", "benign")}
    each = sum(len(prompts) for prompts in test.values())
    runner = InterventionRunner.open(run, test)

    def verdicts(direction: CausalDirection, one: Intervention | None, advance: Advance) -> tuple[Verdict, ...]:
        return tuple(answer.verdict for answer in runner.answers(direction.moving, one, advance))

    with run.listener.task("base model", each) as advance:
        effects = [ScoreEffect(direction, verdicts(direction, None, advance)) for direction in DIRECTIONS]
    norms = write_norms(run.model).norm_2
    for percent in results["budgets"]:
        sets = {score: of_size(one.whole, percent) for score, one in scored.items()}
        units = {score: dose(neurons, norms) for score, neurons in sets.items()}
        with run.listener.task(f"calibrating {percent:g}% of the neurons", each * len(scored)) as advance:
            for score, neurons in sets.items():
                # An empty set has no dose to scale.
                factor = units[REFERENCE] / units[score] if results["equal_dose"] and units[score] > 0 else 1.0
                for direction in DIRECTIONS:
                    alpha = factor * settings.alpha(direction.toward)
                    one = Intervention(score, neurons, direction.toward, alpha, settings)
                    found = verdicts(direction, one, advance)
                    effects.append(ScoreEffect(direction, found, one, percent, units[score] * alpha))
        results["rows"] = _rows(effects)
        results["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(run.folder.path / "scores.json", results)
        write_text(run.folder.path / "scores.md", scores_markdown(results))


def _rows(effects: Sequence[ScoreEffect]) -> list[dict[str, Any]]:
    """One row per effect: the fraction of prompts that moved, against the base model and against random neurons.

    The p-value against random neurons is McNemar's on the same prompts. The false discovery rate is controlled over
    all rows (Benjamini and Hochberg 1995).
    """
    base = {one.direction: one for one in effects if one.intervention is None}
    random = {(one.direction, one.percent): one for one in effects if one.score == "random"}
    rows = [_row(one, base[one.direction], random.get((one.direction, one.percent))) for one in effects]
    tested = [row for row in rows if row["p_value"] is not None]
    if tested:
        for row, value in zip(tested, false_discovery_control([row["p_value"] for row in tested]), strict=True):
            row["differs_from_random"] = bool(value <= FALSE_DISCOVERY_RATE)
    return rows


def _row(one: ScoreEffect, base: ScoreEffect, random: ScoreEffect | None) -> dict[str, Any]:
    # Over all prompts: unscored answers count as not moved.
    rate, value = share(one.hits), sum(one.hits) / len(one.hits)
    control = None if random is one else random
    return {
        "score": one.score,
        "percent": one.percent,
        "neurons": None if one.intervention is None else len(one.intervention.neurons),
        "alpha": None if one.intervention is None else one.intervention.alpha,
        "dose": one.dose,
        "toward": one.direction.toward,
        "prompts": one.direction.moving,
        "counted": one.direction.verdict,
        "value": value,
        "low": rate.low,
        "high": rate.high,
        "n": rate.n,
        "unscored": one.verdicts.count("unscored"),
        "difference": value - sum(base.hits) / len(base.hits),
        "against_random": None if control is None else value - sum(control.hits) / len(control.hits),
        "p_value": None if control is None else mcnemar(one.hits, control.hits),
        "differs_from_random": None,
    }
