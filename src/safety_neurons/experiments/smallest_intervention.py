"""The smallest set and dose that move behavior: searched on validation prompts, reported on test prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from safety_neurons.calibration.calibration import dose
from safety_neurons.calibration.config import CalibrationConfig, Toward
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Listener
from safety_neurons.core.statistics import mcnemar, mean, share
from safety_neurons.evaluation.judges import Verdict
from safety_neurons.experiments.intervention import (
    Intervention,
    InterventionRunner,
    Measurement,
    moved,
)
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.neurons.read import write_norms
from safety_neurons.neurons.scores import NeuronValues
from safety_neurons.prompts import Prompt
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.find import score_neurons_of
from safety_neurons.runs.opened import keep_section, opened, prompts_to_test

# (toward what, the prompts that should move, the verdict that they should get, the prompts that should not move)
DIRECTIONS: tuple[tuple[Toward, str, Verdict, str], ...] = (
    ("conformity", "harmful", "complied", "benign"),
    ("rejection", "benign", "refused", "harmful"),
)
SMALLEST = 0.02
RANDOM_SETS = 3


@dataclass(frozen=True)
class Limits:
    """What a push is searched for and must keep to.

    `target` is the share of the prompts to reach, `broken` the largest share of broken answers, `divergence` how far
    the other prompts may be moved (nats per token), `percent` the largest set, in percent of the model's neurons.
    """

    target: float = 0.97
    broken: float = 0.03
    kl_divergence: float = 1.0
    percent: float = 0.5
    alpha: float = 6.0


def search(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    trials: int = 40,
    limits: Limits | None = None,
    on: Sequence[str] = (),
    listener: Listener | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Search set size, alpha, positions and generated tokens, for each direction; the section "search" of the results.

    The ranking of the neurons is the run's `find.score`. A killed search goes on where it stopped: its trials follow
    from the seed, and what they asked is kept.

    Args:
        trials: how many combinations are tried for each direction.
        on: HARMFUL:BENIGN pairs of prompt sets on which the chosen pushes are tested, too (transfer).

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    limits = limits or Limits()
    _check(trials, limits)
    with opened(path, given, listener, command, on=on) as run:
        tests = {name or "test": prompts_to_test(run, name) for name in (None, *on)}
        validation = {name: list(run.prompts[name].split("validation")) for name in ("harmful", "benign")}
        scored = score_neurons_of(run)
        norms = write_norms(run.model).norm_2
        runner = InterventionRunner.open(run, validation)
        section: dict[str, Any] = {
            "score": scored.score.name,
            "trials": trials,
            "limits": asdict(limits),
            "validation": {name: len(prompts) for name, prompts in validation.items()},
            "directions": [],
        }
        for direction in DIRECTIONS:
            tried = _search(run, runner, scored, norms, direction, trials, limits)
            best = choose(tried, limits)
            push = _push(scored, direction[0], best)
            if not len(push.neurons):
                raise SafetyNeuronsError(
                    f"{scored.score.name} finds no neurons in any set of up to {limits.percent}%: harmful and benign "
                    "prompts rank the same ones. Raise --max-percent or choose another find.score."
                )
            section["directions"].append(
                {
                    "toward": direction[0],
                    "chosen": best,
                    "push": _described_push(push, norms),
                    "trials": tried,
                    "tests": [_test(run, name, sets, push, norms, direction) for name, sets in tests.items()],
                }
            )
        return keep_section(run.folder, "search", section)


def _check(trials: int, limits: Limits) -> None:
    if trials < 1:
        raise SafetyNeuronsError(f"A search needs at least one trial, not {trials}.")
    for name, value in asdict(limits).items():
        if not math.isfinite(value):
            raise SafetyNeuronsError(f"The limit of {name} is a finite number, not {value}.")
    if not SMALLEST < limits.percent <= 100:
        raise SafetyNeuronsError(f"The largest set is above {SMALLEST} and at most 100 percent, not {limits.percent}.")
    for name in ("target", "broken"):
        if not 0 <= getattr(limits, name) <= 1:
            raise SafetyNeuronsError(f"{name} is a share from 0 to 1, not {getattr(limits, name)}.")
    if limits.kl_divergence <= 0 or limits.alpha <= 0:
        raise SafetyNeuronsError("The limits of divergence and alpha are above 0.")


def _search(
    run: RunContext,
    runner: InterventionRunner,
    scored: ScoredNeurons,
    norms: NeuronValues,
    direction: tuple[Toward, str, Verdict, str],
    trials: int,
    limits: Limits,
) -> list[dict[str, Any]]:
    """All trials of one direction, in their order."""
    toward, name, verdict, other = direction
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Sequential and in memory: a killed search is replayed from the answers that are kept.
    sampler = optuna.samplers.TPESampler(seed=run.settings.seed, n_startup_trials=max(5, trials // 4))
    study = optuna.create_study(sampler=sampler)
    tried: list[dict[str, Any]] = []
    total = trials * (len(runner.sets[name]) + len(runner.sets[other]))
    with run.listener.task(f"searching toward {toward}", total) as advance:
        for _ in range(trials):
            trial = study.ask()
            chosen = _suggest(trial, limits, run.settings.find.positions)
            push = _push(scored, toward, chosen)
            there, elsewhere = runner.measurement(name, push, advance), runner.measurement(other, push, advance)
            result = chosen | _described_push(push, norms) | _judged(there, elsewhere, verdict)
            tried.append(result)
            trial.set_constraint("broken", result["broken"] - limits.broken)
            trial.set_constraint("kl_divergence", result["side_kl_divergence"] - limits.kl_divergence)
            study.tell(trial, cost(result, limits))
    return tried


def _suggest(trial: optuna.Trial, limits: Limits, positions: int) -> dict[str, Any]:
    return {
        "percent": trial.suggest_float("percent", SMALLEST, limits.percent, log=True),
        "alpha": trial.suggest_float("alpha", limits.alpha / 12, limits.alpha, log=True),
        "prompt_positions": trial.suggest_int("prompt_positions", 1, positions),
        "generated_tokens": trial.suggest_categorical("generated_tokens", [0, 1, 4, 16]),
    }


def cost(result: Mapping[str, Any], limits: Limits) -> float:
    """What the search makes small: what is missing to the target, and, far behind, the size of set and alpha."""
    size = math.log(result["percent"] / SMALLEST) / math.log(limits.percent / SMALLEST)
    return max(0.0, limits.target - result["moved"]) + 0.05 * (size + result["alpha"] / limits.alpha) / 2


def choose(tried: Sequence[dict[str, Any]], limits: Limits) -> dict[str, Any]:
    """The cheapest trial that keeps to the limits; where none does, the one that breaks least."""

    def rank(result: Mapping[str, Any]) -> tuple[float, float]:
        excess = max(0.0, result["broken"] - limits.broken) + max(
            0.0, result["side_kl_divergence"] - limits.kl_divergence
        )
        return excess, cost(result, limits)

    return min(tried, key=rank)


def _judged(there: Measurement, elsewhere: Measurement, verdict: Verdict) -> dict[str, Any]:
    return {
        "moved": there.share(verdict),
        "broken": max(there.share("unscored"), elsewhere.share("unscored")),
        # Nothing was answered, so that nothing can be moved.
        "side_kl_divergence": mean(elsewhere.kl_divergence, 0).value or 0.0,
    }


def _push(scored: ScoredNeurons, toward: Toward, chosen: Mapping[str, Any]) -> Intervention:
    knobs = CalibrationConfig(prompt_positions=chosen["prompt_positions"], generated_tokens=chosen["generated_tokens"])
    return Intervention("found", scored.top(chosen["percent"]), toward, chosen["alpha"], knobs)


def _described_push(push: Intervention, norms: NeuronValues) -> dict[str, Any]:
    return {
        "neurons": len(push.neurons),
        "share_of_neurons": push.neurons.share_of_neurons,
        "share_of_parameters": push.neurons.share_of_parameters,
        "dose": push.alpha * dose(push.neurons, norms),
    }


def _test(
    run: RunContext,
    name: str,
    sets: dict[str, list[Prompt]],
    push: Intervention,
    norms: NeuronValues,
    direction: tuple[Toward, str, Verdict, str],
) -> dict[str, Any]:
    """The chosen push on prompts that nothing was chosen on, beside random neurons of the same number.

    What random neurons do to the prompts that should stay is not asked: they have to be compared where they move.
    """
    _, moving, verdict, staying = direction
    runner = InterventionRunner.open(run, sets)
    both, each = sum(map(len, sets.values())), len(sets[moving])
    with run.listener.task(f"testing toward {push.toward} ({name})", 2 * both + 2 * RANDOM_SETS * each) as advance:
        before = {one: runner.measurement(one, None, advance) for one in sets}
        found = {one: runner.measurement(one, push, advance) for one in sets}
        rows = [_row("base", before, before, direction), _row("found", before, found, direction)]
        for number in range(RANDOM_SETS):
            random = push.neurons.random_like(run.settings.seed + 1 + number)
            factor = dose(push.neurons, norms) / dose(random, norms)
            for subject, alpha in (("random", push.alpha), ("random, equal dose", push.alpha * factor)):
                other = Intervention(subject, random, push.toward, alpha, push.config)
                measurement = {moving: runner.measurement(moving, other, advance)}
                p_value = mcnemar(found[moving].are(verdict), measurement[moving].are(verdict))
                rows.append(_row(subject, before, measurement, direction) | {"alpha": alpha, "p_value": p_value})
    return {"on": name, "moving": moving, "staying": staying, "rows": rows}


def _row(
    subject: str,
    before: Mapping[str, Measurement],
    after: Mapping[str, Measurement],
    direction: tuple[Toward, str, Verdict, str],
) -> dict[str, Any]:
    _, moving, verdict, staying = direction
    return {
        "subject": subject,
        "moving": after[moving].described(),
        "staying": after[staying].described() if staying in after else None,
        "moved": asdict(share(moved(before[moving], after[moving], verdict))),
    }
