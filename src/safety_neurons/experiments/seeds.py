"""`experiment seeds`: corpus, tuning and evaluation repeated with several seeds, beside random neurons."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safety_neurons.core.distributed import release_workers
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Listener
from safety_neurons.evaluation.contracts import RunArtifacts
from safety_neurons.experiments.seed_measures import Verdicts, measures_of
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.report.record import HARMFUL
from safety_neurons.report.results import BASE, TUNED, RunResults, read_results
from safety_neurons.report.scale_curve import ScaleCurve
from safety_neurons.runs.artifacts import load_delta
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.evaluation import Evaluator
from safety_neurons.runs.find import score_neurons_of
from safety_neurons.runs.folder import RunFolder, overridden
from safety_neurons.runs.kept_deltas import DeltaStore, delta_key, tuned
from safety_neurons.runs.opened import keep_section, opened
from safety_neurons.runs.percents import neurons_to_tune, unusable
from safety_neurons.settings import Settings
from safety_neurons.tuning.delta import NeuronDelta

SEEDS = 5


@dataclass(frozen=True)
class Budget:
    """How many neurons are tuned, in percent of the model's, and at which learning rate."""

    percent: float
    learning_rate: float

    @classmethod
    def read(cls, text: str) -> "Budget":
        """PERCENT:RATE, such as 0.5:1e-3.

        Raises:
            SafetyNeuronsError: the text is not that.
        """
        percent, _, rate = text.partition(":")
        try:
            return cls(float(percent), float(rate))
        except ValueError:
            raise SafetyNeuronsError(
                f"{text!r} is not a budget: give a percentage of the neurons and a learning rate, such as 0.5:1e-3."
            ) from None


@dataclass(frozen=True, eq=False)
class Group:
    """Trainings that differ by their seed alone. For random neurons, `found` are those that they stand beside."""

    subject: str
    budget: Budget
    found: NeuronSet

    def neurons(self, seed: int) -> NeuronSet:
        """Random neurons are other ones for each seed."""
        return self.found if self.subject == "found" else self.found.random_like(seed + 1)

    def __str__(self) -> str:
        return f"{self.subject} {self.budget.percent:g}%"


def repeat_tuning(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    seeds: int = SEEDS,
    with_random: bool = False,
    budgets: Sequence[Budget] = (),
    listener: Listener | None = None,
    command: str = "",
) -> RunResults:
    """Repeat corpus, tuning and evaluation of a run with several seeds, and report mean and spread.

    The seeds are the run's and the next ones. A seed changes the sampled answers of the corpus and the order of the
    training batches; the run's neurons, and the requests and attacks of the evaluation, stay the same. The run itself
    is the first training, and is tuned first if necessary. All trained deltas are kept in the folder `deltas`: a killed
    experiment continues, and one with more seeds adds to the earlier one. Returns the run's results, with the section
    "seeds", by the first of the evaluation's judges.

    Args:
        given: settings that override the run's own.
        with_random: also tune as many random neurons of the same layers, other ones for each seed, on the same
            corpora. Found minus random is paired by request and seed.
        budgets: sizes of the neuron sets. Default: the run's own find.percent and tune.learning_rate.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    if seeds < 1:
        raise SafetyNeuronsError(f"Tuning can be repeated with 1 seed or more, not {seeds}.")
    if len({one.percent for one in budgets}) < len(budgets):
        raise SafetyNeuronsError("A budget is named twice. Name each percentage once.")
    for budget in budgets:
        _settings(Settings(), budget, 0)
    with RunFolder(path).held():
        return _repeat(path, given, seeds, with_random, budgets, listener, command)


def _repeat(
    path: Path,
    given: Mapping[str, Any] | None,
    seeds: int,
    with_random: bool,
    budgets: Sequence[Budget],
    listener: Listener | None,
    command: str,
) -> RunResults:
    uses = ("find", "tune", "evaluate")
    with opened(path, given, listener, command, uses=uses, alone=False) as run:
        # Whatever is wrong with the evaluation is told before anything is trained.
        asked = Evaluator.of_verdicts(run.settings, BASE)
        if run.settings.evaluate.on is not None:
            asked.tell(run.listener)
    with opened(path, given, listener, command, until="tune", uses=uses, is_told=True, alone=False) as run:
        groups = list(_groups(run, budgets, with_random))
        evaluator = Evaluator.of_verdicts(run.settings, TUNED)
        base, left_out = _answers(run, Evaluator.of_verdicts(run.settings, BASE), None)
        numbers = range(run.settings.seed, run.settings.seed + seeds)
        store = DeltaStore.open(run.folder, run.listener)
        trained: dict[Group, list[dict[str, Any]]] = {group: [] for group in groups}
        answered: dict[Group, list[Verdicts]] = {group: [] for group in groups}
        with run.listener.task("trainings", len(groups) * seeds) as advance:
            for seed in numbers:
                for group in groups:
                    delta, curve = _tuned(run, store, group, seed)
                    verdicts, problems = _answers(run, evaluator, delta)
                    left_out |= problems
                    training = {
                        "seed": seed,
                        "digest": delta.digest,
                        "scale_curve": curve and curve.model_dump(mode="json"),
                    }
                    trained[group].append(training)
                    answered[group].append(verdicts)
                    advance(1)
        release_workers()
        section = _section(run, evaluator, base, trained, answered, left_out)
        return keep_section(run, "seeds", section, unused=("explain", "guard"))


def _section(
    run: RunContext,
    evaluator: Evaluator,
    base: Verdicts,
    trained: Mapping[Group, list[dict[str, Any]]],
    answered: Mapping[Group, list[Verdicts]],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """The results: what was asked, and each group's trainings and measures."""
    plan, config = evaluator.plan, run.settings.evaluate
    return {
        "judge": evaluator.judges[0].name,
        "on": config.on or run.settings.harmful,
        "requests": {HARMFUL: len(plan.harmful)} | {name: len(prompts) for name, prompts in plan.safe.items()},
        "answer_tokens": config.answer_tokens,
        "corpus": None if run.settings.tune.corpus is None else str(run.settings.tune.corpus),
        "left_out": left_out,
        "groups": [
            {
                "subject": group.subject,
                "percent": group.budget.percent,
                "learning_rate": group.budget.learning_rate,
                "neurons": len(group.found),
                "share_of_parameters": group.found.share_of_parameters,
                "trainings": trainings,
                "measures": measures_of(
                    base, answered[group], _beside(group, answered), left_out.keys(), run.settings.seed
                ),
            }
            for group, trainings in trained.items()
        ],
    }


def _beside(group: Group, answered: Mapping[Group, list[Verdicts]]) -> list[Verdicts] | None:
    """What the random neurons beside the found ones answered, if there are any."""
    beside = (found for other, found in answered.items() if other.subject != "found" and other.budget == group.budget)
    return next(beside, None) if group.subject == "found" else None


def _settings(settings: Settings, budget: Budget, seed: int) -> Settings:
    """The settings of one training; errors as `Settings.checked`."""
    changes = {
        "seed": seed,
        "find": {"percent": budget.percent},
        "tune": {"learning_rate": budget.learning_rate},
    }
    return Settings.checked(overridden(settings.model_dump(), changes))


def _groups(run: RunContext, budgets: Sequence[Budget], with_random: bool) -> Iterator[Group]:
    """The groups in order.

    Raises:
        SafetyNeuronsError: a budget pays for no neurons, or too few are left for as many random ones.
    """
    config, own = run.settings.find, _own(run)
    scored = None
    for budget in budgets or [own]:
        if budget.percent == own.percent:
            found = neurons_to_tune(run)
        else:
            scored = scored or score_neurons_of(run)
            found = scored.top(budget.percent, config.scope, config.selection)
        problem = None if len(found) else f"{config.score} finds no neurons"
        if with_random:
            problem = problem or found.crowded
        if problem is not None:
            scored = scored or score_neurons_of(run)
            if budgets:
                advice = "Name a budget of {percent:g}% ({percent:g}:RATE)"
                raise unusable(run, scored, "budget", budget.percent, problem, advice=advice)
            setting = "find.percent" if run.settings.tune.percent is None else "tune.percent"
            raise unusable(run, scored, setting, budget.percent, problem)
        yield Group("found", budget, found)
        if with_random:
            yield Group("random", budget, found)


def _own(run: RunContext) -> Budget:
    settings = run.settings
    return Budget(settings.tune.percent or settings.find.percent, settings.tune.learning_rate)


def _tuned(run: RunContext, store: DeltaStore, group: Group, seed: int) -> tuple[NeuronDelta, ScaleCurve | None]:
    """The delta of a training and how it was selected: the run's own, a kept one, or one that is trained now."""
    if (group.subject, group.budget, seed) == ("found", _own(run), run.settings.seed):
        own = read_results(run.folder.results).training
        assert own is not None
        return load_delta(run.folder), own.scale_curve
    key = delta_key(run, group.subject, group.budget.percent, group.budget.learning_rate, seed)
    seeded = run.with_settings(_settings(run.settings, group.budget, seed))
    title = f"{group} of the neurons, seed {seed}"
    return tuned(seeded, store, key, group.neurons(seed), title, group.subject)


def _answers(run: RunContext, evaluator: Evaluator, delta: NeuronDelta | None) -> tuple[Verdicts, dict[str, str]]:
    """The verdicts of the first judge for each set and attack, and why an attack could not be run."""
    artifacts = RunArtifacts(neurons=run.neurons, delta=delta, alpha_conformity=run.settings.calibrate.alpha_conformity)
    cells, _ = evaluator.answer(evaluator.context(run.engine, artifacts, run.folder.path, run.listener))
    judge = evaluator.judges[0].name
    judged = evaluator.judge(cells, run.verdicts, run.listener)
    verdicts = {(one.cell.prompts, one.cell.attack): one.verdicts(judge) for one in judged}
    return verdicts, {one.cell.attack: one.cell.reason for one in judged if one.cell.reason}
