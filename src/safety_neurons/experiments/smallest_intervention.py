"""The smallest intervention that changes behavior: searched on validation prompts, reported on test prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from safety_neurons.calibration.calibration import dose
from safety_neurons.calibration.config import CalibrationConfig, Toward
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Listener
from safety_neurons.core.statistics import holm, mcnemar, mean, share
from safety_neurons.experiments.equal_effect import Matched, match_kl
from safety_neurons.experiments.intervention import (
    DIRECTIONS,
    CausalDirection,
    Intervention,
    InterventionRunner,
    Measurement,
    moved,
)
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.neurons.read import write_norms
from safety_neurons.neurons.scores import NeuronValues
from safety_neurons.report.results import RunResults
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.find import score_neurons_of
from safety_neurons.runs.opened import keep_section, opened, prompts_to_test

# The smallest set that the search tries, in percent of the neurons.
SMALLEST = 0.02
RANDOM_SETS = 3


@dataclass(frozen=True)
class Limits:
    """Target and limits of the search.

    `target` is the fraction of the prompts that should get the verdict, `broken` the largest fraction of broken
    answers, `kl_divergence` the largest KL divergence on the prompts that should stay (nats per token), `percent` the
    largest set in percent of the model's neurons, and `alpha` the largest strength.
    """

    target: float = 0.97
    broken: float = 0.03
    kl_divergence: float = 1.0
    percent: float = 0.5
    alpha: float = 6.0

    def __post_init__(self) -> None:
        checks = {
            "target": ("from 0 to 1", 0 <= self.target <= 1),
            "broken": ("from 0 to 1", 0 <= self.broken <= 1),
            "kl_divergence": ("a finite number above 0", 0 < self.kl_divergence < math.inf),
            "percent": (f"above {SMALLEST} and at most 100", SMALLEST < self.percent <= 100),
            "alpha": ("a finite number above 0", 0 < self.alpha < math.inf),
        }
        for name, (allowed, is_allowed) in checks.items():
            if not is_allowed:
                raise SafetyNeuronsError(f"The limit {name} must be {allowed}, not {getattr(self, name)}.")


@dataclass(frozen=True)
class _Setup:
    """What the trials and tests share."""

    run: RunContext
    scored: ScoredNeurons
    norms: NeuronValues
    trials: int
    limits: Limits

    def intervention(self, toward: Toward, chosen: Mapping[str, Any]) -> Intervention:
        config = CalibrationConfig(
            prompt_positions=chosen["prompt_positions"], generated_tokens=chosen["generated_tokens"]
        )
        find = self.run.settings.find
        neurons = self.scored.top(chosen["percent"], find.scope, find.selection)
        return Intervention("found", neurons, toward, chosen["alpha"], config)

    def random(self, one: Intervention, number: int) -> NeuronSet:
        """A control of an intervention: as many random neurons of each layer."""
        return one.neurons.random_like(self.run.settings.seed + 1 + number)

    def size(self, one: Intervention) -> dict[str, Any]:
        return {
            "neurons": len(one.neurons),
            "share_of_neurons": one.neurons.share_of_neurons,
            "share_of_parameters": one.neurons.share_of_parameters,
            "dose": one.alpha * dose(one.neurons, self.norms),
        }


def search(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    trials: int = 40,
    limits: Limits | None = None,
    on: Sequence[str] = (),
    listener: Listener | None = None,
    command: str = "",
) -> RunResults:
    """Search set size, alpha, prompt positions and generated tokens in each direction.

    Neurons are selected as the run's settings say (`find.score`, `find.scope`, `find.selection`). A killed search
    continues where it stopped: its trials follow from the seed, and answers are cached. Runs missing stages first.
    Returns the run's results, with the section "search".

    Args:
        given: settings that override the run's own.
        trials: number of combinations to try in each direction.
        on: more HARMFUL:BENIGN pairs of prompt sets on which to test the chosen interventions (transfer).

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    limits = limits or Limits()
    if trials < 1:
        raise SafetyNeuronsError(f"A search needs at least one trial, not {trials}.")
    with opened(path, given, listener, command, on=on) as run:
        if "calibrate" in run.given:
            run.listener.say("The search chooses how to calibrate itself: the options of calibrate are not used.")
        tests = {name or "test": prompts_to_test(run, name) for name in (None, *on)}
        validation = {name: list(run.prompts[name].split("validation")) for name in ("harmful", "benign")}
        scored = score_neurons_of(run)
        setup = _Setup(run, scored, write_norms(run.model).norm_2, trials, limits)
        runner = InterventionRunner.open(run, validation)
        directions = []
        for direction in DIRECTIONS:
            tried = _try_all(setup, runner, direction)
            filled = [one for one in tried if one["neurons"]]
            if not filled:
                raise SafetyNeuronsError(
                    f"{scored.score.name} finds no neurons in any set of up to {limits.percent}%: harmful and benign "
                    "prompts rank the same ones highest. Raise limits.percent (--max-percent), or choose another "
                    "find.score."
                )
            best = choose(filled, limits)
            one = setup.intervention(direction.toward, best)
            kl, matched = _equal_kl(setup, runner, one)
            directions.append(
                {
                    "toward": direction.toward,
                    "chosen": best,
                    "size": setup.size(one),
                    "kl_divergence": kl,
                    "trials": tried,
                    "tests": [
                        _test(setup, InterventionRunner.open(run, sets), name, one, direction, matched)
                        for name, sets in tests.items()
                    ],
                }
            )
        section = {
            "score": scored.score.name,
            "trials": trials,
            "limits": asdict(limits),
            "validation": {name: len(prompts) for name, prompts in validation.items()},
            "directions": directions,
        }
        return keep_section(run, "search", section, unused=["calibrate"])


def _try_all(setup: _Setup, runner: InterventionRunner, direction: CausalDirection) -> list[dict[str, Any]]:
    """All trials of one direction, in order."""
    limits, settings = setup.limits, setup.run.settings
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Sequential and in memory: a killed search is replayed from the cached answers.
    sampler = optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=max(5, setup.trials // 4))
    study = optuna.create_study(sampler=sampler)
    tried: list[dict[str, Any]] = []
    total = setup.trials * sum(map(len, runner.sets.values()))
    with setup.run.listener.task(f"searching toward {direction.toward}", total) as advance:
        for _ in range(setup.trials):
            trial = study.ask()
            chosen = {
                "percent": trial.suggest_float("percent", SMALLEST, limits.percent, log=True),
                "alpha": trial.suggest_float("alpha", limits.alpha / 12, limits.alpha, log=True),
                "prompt_positions": trial.suggest_int("prompt_positions", 1, settings.find.positions),
                "generated_tokens": trial.suggest_categorical("generated_tokens", [0, 1, 4, 16]),
            }
            one = setup.intervention(direction.toward, chosen)
            moving = runner.measurement(direction.moving, one, advance)
            staying = runner.measurement(direction.staying, one, advance)
            result = {
                **chosen,
                **setup.size(one),
                "moved": moving.share(direction.verdict),
                "broken": max(moving.share("unscored"), staying.share("unscored")),
                # None: all answers are empty, so there is nothing to diverge.
                "side_kl_divergence": mean(staying.kl_divergence, 0).value or 0.0,
            }
            tried.append(result)
            trial.set_constraint("broken", result["broken"] - limits.broken)
            trial.set_constraint("kl_divergence", result["side_kl_divergence"] - limits.kl_divergence)
            study.tell(trial, cost(result, limits))
    return tried


def cost(result: Mapping[str, Any], limits: Limits) -> float:
    """The search minimizes the gap to the target and, with a small weight, set size and alpha."""
    size = math.log(result["percent"] / SMALLEST) / math.log(limits.percent / SMALLEST)
    return max(0.0, limits.target - result["moved"]) + 0.05 * (size + result["alpha"] / limits.alpha) / 2


def choose(tried: Sequence[dict[str, Any]], limits: Limits) -> dict[str, Any]:
    """The trial of least cost within the limits, or the one that exceeds them least."""

    def rank(result: Mapping[str, Any]) -> tuple[float, float]:
        broken, divergence = result["broken"] - limits.broken, result["side_kl_divergence"] - limits.kl_divergence
        return max(0.0, broken) + max(0.0, divergence), cost(result, limits)

    return min(tried, key=rank)


def _equal_kl(setup: _Setup, runner: InterventionRunner, one: Intervention) -> tuple[float, list[Matched]]:
    """The KL divergence of an intervention on the benign validation prompts, and where random sets have the same.

    Benign prompts in both directions: the KL on ordinary prompts is what an intervention does to the model as a whole.
    """

    def kl_at(neurons: NeuronSet, alpha: float) -> float:
        return mean(runner.kl_divergences("benign", replace(one, neurons=neurons, alpha=alpha)), 0).value or 0.0

    target = kl_at(one.neurons, one.alpha)
    matched = []
    with setup.run.listener.task(f"random neurons at equal KL toward {one.toward}", RANDOM_SETS) as advance:
        for number in range(RANDOM_SETS):
            random = setup.random(one, number)
            if target:
                matched.append(match_kl(partial(kl_at, random), target, one.alpha))
            else:
                # An intervention that changes nothing: at no strength can anything be nearer to it.
                matched.append(Matched(0.0, 0.0, True))
            advance(1)
    return target, matched


def _test(
    setup: _Setup,
    runner: InterventionRunner,
    name: str,
    one: Intervention,
    direction: CausalDirection,
    matched: Sequence[Matched],
) -> dict[str, Any]:
    """Measure the chosen intervention on prompts that it was not chosen on, next to sets of random neurons.

    Random neurons are asked only the prompts that should move, where they are the control: at the same alpha, at the
    same dose, and at the alpha that gives the same KL divergence on the benign validation prompts. The p-values are
    adjusted for the number of these comparisons.
    """
    _, moving, verdict, staying = direction

    def row(subject: str, after: Mapping[str, Measurement]) -> dict[str, Any]:
        return {
            "subject": subject,
            "moving": after[moving].described(),
            "staying": after[staying].described() if staying in after else None,
            "moved": asdict(share(moved(before[moving], after[moving], verdict))),
        }

    total = 2 * sum(map(len, runner.sets.values())) + 3 * RANDOM_SETS * len(runner.sets[moving])
    with setup.run.listener.task(f"testing toward {one.toward} ({name})", total) as advance:
        before = {side: runner.measurement(side, None, advance) for side in runner.sets}
        found = {side: runner.measurement(side, one, advance) for side in runner.sets}
        rows, p_values = [], []
        for number, equal in enumerate(matched):
            random = setup.random(one, number)
            factor = dose(one.neurons, setup.norms) / dose(random, setup.norms)
            alphas = {
                "random": one.alpha,
                "random, equal dose": one.alpha * factor,
                "random, equal KL": equal.strength,
            }
            for subject, alpha in alphas.items():
                after = runner.measurement(moving, replace(one, subject=subject, neurons=random, alpha=alpha), advance)
                p_values.append(mcnemar(found[moving].are(verdict), after.are(verdict)))
                own: dict[str, Any] = {"alpha": alpha}
                if subject == "random, equal KL":
                    own |= {"kl_divergence": equal.kl_divergence, "kl_reached": equal.reached}
                rows.append(row(subject, {moving: after}) | own)
    rows = [one | {"p_value": p_value} for one, p_value in zip(rows, holm(p_values), strict=True)]
    rows = [row("base", before), row("found", found), *rows]
    return {"on": name, "moving": moving, "staying": staying, "rows": rows}
