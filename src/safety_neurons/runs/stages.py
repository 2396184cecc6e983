"""What each stage of a run does: it reads the artifacts before it and leaves its own, with its rows of the table."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from safety_neurons.calibration.clouds import AWAY, MOST_PROMPTS, read_clouds
from safety_neurons.calibration.config import Toward
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import fingerprint
from safety_neurons.core.statistics import Row, mean_rate
from safety_neurons.explanation.projection import explain
from safety_neurons.explanation.readout import mean_residuals
from safety_neurons.neurons import scores
from safety_neurons.neurons.find import FALSE_DISCOVERY_RATE, ScoredNeurons, score_neurons
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.neurons.read import passes
from safety_neurons.runs.answers import Condition
from safety_neurons.runs.context import RunContext, StageResult
from safety_neurons.runs.corpus import corpus_of
from safety_neurons.runs.validation import Validator
from safety_neurons.runs.workers import find_as_set, tune_as_set
from safety_neurons.tuning.batches import training_steps
from safety_neurons.tuning.delta import NeuronDelta, outside_digest


def find_stage(run: RunContext) -> StageResult:
    settings = run.settings.find
    score = scores.get(settings.score)
    neurons = find_as_settings_say(run, f"finding neurons ({score.name})")
    if not len(neurons):
        raise SafetyNeuronsError(
            f"{settings.score} found no neurons at {settings.percent}%: harmful and benign prompts rank the same ones. "
            "Raise find.percent or choose another find.score."
        )
    assert neurons.directions is not None
    neurons.directions.save(run.folder.directions)
    neurons.save(run.folder.neurons)
    run.listener.say(str(neurons))
    per_layer = [count._asdict() for count in neurons.per_layer()]
    significance = _significance(neurons)
    if significance is not None:
        run.listener.say(
            f"{significance['total']:,} of {sum(neurons.widths):,} neurons differ between harmful and benign prompts "
            f"(Welch's t-test, false discovery rate {FALSE_DISCOVERY_RATE:.0%}); by layer: "
            + ", ".join(f"{layer} {count:,}" for layer, count in significance["per_layer"].items())
        )
    return StageResult(
        sections={
            "neurons": {
                "total": len(neurons),
                "rejection": sum(layer["rejection"] for layer in per_layer),
                "conformity": sum(layer["conformity"] for layer in per_layer),
                "share_of_neurons": neurons.share_of_neurons,
                "share_of_parameters": neurons.share_of_parameters,
                "score": score.name,
                "formula": score.formula,
                "percent": settings.percent,
                "scope": neurons.provenance.scope,
                "selection": neurons.provenance.selection,
                "tokens": neurons.provenance.tokens,
                "per_layer": per_layer,
                "indices": neurons.indices(),
                "significant": significance,
            }
        }
    )


def find_as_settings_say(run: RunContext, title: str) -> NeuronSet:
    """The neurons of the run's model as it is now, found on the run's training prompts."""
    settings = run.settings.find
    score = scores.get(settings.score)
    sides, total = _training_sides(run, score)
    # Loaded before the bar begins.
    model, other = run.model, run.other_model if score.compares_models else None
    with run.listener.task(title, total) as advance:
        return find_as_set(model, run.settings, sides[0], sides[1], other, advance)


def score_as_settings_say(run: RunContext, name: str | None = None) -> ScoredNeurons:
    """Every neuron's score on the run's training prompts, by the run's own ranking or by another one."""
    score = scores.get(name or run.settings.find.score)
    sides, total = _training_sides(run, score)
    model, other = run.model, run.other_model if score.compares_models else None
    with run.listener.task(f"scoring neurons ({score.name})", total) as advance:
        return score_neurons(
            model,
            sides[0],
            sides[1],
            run.settings.find,
            score=score.name,
            other=other,
            seed=run.settings.seed,
            batch_size=run.settings.batch_size,
            advance=advance,
        )


def _training_sides(run: RunContext, score: scores.Score) -> tuple[list[list[str]], int]:
    """The harmful and the benign prompts that neurons are ranked on, and how many are read for this score in all."""
    settings = run.settings.find
    sides = [[prompt.text for prompt in run.chosen(name, "train", settings.prompts)] for name in ("harmful", "benign")]
    return sides, passes(score, settings.tokens or score.tokens) * sum(map(len, sides))


def _significance(neurons: NeuronSet) -> dict[str, Any] | None:
    """How many neurons of each layer and in all differ between the sides, where the score tests it."""
    counts = neurons.provenance.significant
    if counts is None:
        return None
    per_layer = dict.fromkeys(neurons.layers, 0)
    for layer, count in zip(neurons.layers, counts, strict=True):
        per_layer[layer] += count
    return {
        "false_discovery_rate": FALSE_DISCOVERY_RATE,
        "total": sum(counts),
        "per_layer": {str(layer): count for layer, count in per_layer.items()},
    }


def explain_stage(run: RunContext) -> StageResult:
    settings = run.settings.explain
    model, neurons = run.model, run.neurons
    residuals = None
    if settings.random_sets and settings.lens_prompts:
        harmful, benign = (
            [prompt.text for prompt in run.chosen(name, "train", settings.lens_prompts)]
            for name in ("harmful", "benign")
        )
        with run.listener.task("reading the residual stream", len(harmful) + len(benign)) as advance:
            residuals = mean_residuals(model, harmful, benign, batch_size=run.settings.batch_size, advance=advance)
    with run.listener.task("projecting to the vocabulary", len(set(neurons.layers))) as advance:
        explanation = explain(model, neurons, settings, residuals=residuals, seed=run.settings.seed, advance=advance)
    run.listener.say(explanation)
    return StageResult(sections=explanation.to_json())


def calibrate_stage(run: RunContext) -> StageResult:
    count = run.settings.evaluate.prompts
    test = {name: run.chosen(name, "test", count) for name in ("harmful", "benign")}
    random = run.neurons.random_like(run.settings.seed + 1)
    rows: list[Row] = []
    examples: list[dict[str, Any]] = []

    def measure(condition: Condition, name: str) -> None:
        answers = run.ask(condition, name, test[name])
        rows.append(run.row("calibrate", condition, name, "direct", answers, "refused"))
        examples.extend(run.examples("calibrate", condition, name, "direct", answers))

    for name in test:
        measure(run.base(), name)
    directions: tuple[tuple[Toward, str], ...] = (("conformity", "harmful"), ("rejection", "benign"))
    for toward, name in directions:
        for subject, neurons in (("found", run.neurons), ("random", random)):
            with run.calibrated_model(toward, neurons):
                measure(run.calibrated(toward, subject), name)
    sections = {"control": {"indices": random.indices()}, "clouds": two_clouds(run, random)}
    return StageResult(tuple(rows), sections=sections, examples=tuple(examples))


def two_clouds(run: RunContext, random: NeuronSet) -> dict[str, Any]:
    """Test prompts by what the found neurons do, as they are and calibrated; no answer is made."""
    settings = run.settings
    count = min(settings.evaluate.prompts, MOST_PROMPTS)
    prompts = {side: run.chosen(side, "test", count) for side in AWAY}
    alphas = {toward: settings.calibrate.alpha(toward) for toward in AWAY.values()}
    # Loaded before the bar begins.
    model, neurons = run.model, run.neurons
    with run.listener.task("reading the two clouds", 2 * sum(map(len, prompts.values()))) as advance:
        layers = read_clouds(
            model,
            neurons,
            random,
            {side: [prompt.text for prompt in own] for side, own in prompts.items()},
            alphas=alphas,
            knobs=settings.calibrate,
            seed=settings.seed,
            batch_size=settings.batch_size,
            advance=advance,
        )
    shown = {side: [{"id": one.id, "category": one.category} for one in own] for side, own in prompts.items()}
    return {"alpha": alphas, "prompts": shown, "layers": layers}


def tune_stage(run: RunContext) -> StageResult:
    settings = run.settings.tune
    corpus = corpus_of(run)
    corpus.save(run.folder.corpus)
    run.listener.say("corpus: " + ", ".join(f"{count} {kind}" for kind, count in corpus.counts().items()))
    model, neurons = run.model, run.neurons
    before = outside_digest(model, neurons)
    started = time.monotonic()
    validate = None if settings.patience is None else Validator.open(run).measure
    steps = training_steps(corpus, settings.batch_size, settings.epochs)
    with run.listener.task(f"tuning {len(neurons):,} neurons", steps) as advance:
        delta = tune_as_set(
            model,
            neurons,
            corpus,
            run.settings,
            validate=validate,
            checkpoint=run.folder.checkpoint,
            advance=advance,
        )
    seconds = time.monotonic() - started
    with delta.apply(model):
        unchanged = outside_digest(model, neurons) == before
    if not unchanged:
        raise SafetyNeuronsError("Tuning moved weights outside the neurons. This is a bug: please report it.")
    delta.save(run.folder.delta)
    return StageResult(
        sections={
            "training": {
                "loss": [asdict(step) for step in delta.steps],
                "validation": [asdict(step) for step in delta.validations],
                "corpus": corpus.counts(),
                "trainable_parameters": delta.parameters,
                "share_of_parameters": delta.parameters / model.parameters,
                "unchanged_outside": unchanged,
                "seconds": seconds,
            }
        }
    )


def evaluate_stage(run: RunContext) -> StageResult:
    settings = run.settings.evaluate
    delta = NeuronDelta.load(run.folder.delta)
    rows: list[Row] = []
    examples: list[dict[str, Any]] = []

    def measure(condition: Condition) -> None:
        harmful = run.chosen("harmful", "test", settings.prompts)
        groups = []
        for attack in settings.attacks:
            answers = run.ask(condition, "harmful", harmful, attack)
            groups.append([answer.verdict for answer in answers])
            rows.append(run.row("evaluate", condition, "harmful", attack, answers, "attack success"))
            examples.extend(run.examples("evaluate", condition, "harmful", attack, answers))
        mean = mean_rate(groups, "complied", run.settings.seed)
        rows.append(replace(rows[-1], attack="mean", **asdict(mean)))
        for name in ("benign", "borderline"):
            answers = run.ask(condition, name, run.chosen(name, "test", settings.prompts))
            rows.append(run.row("evaluate", condition, name, "direct", answers, "refused"))
            examples.extend(run.examples("evaluate", condition, name, "direct", answers))

    measure(run.base("before"))
    with delta.apply(run.model):
        measure(Condition("tuned", "after", fingerprint(run.answering, delta.digest)))
    return StageResult(tuple(rows), examples=tuple(examples))


IMPLEMENTATIONS: dict[str, Callable[[RunContext], StageResult]] = {
    "find": find_stage,
    "explain": explain_stage,
    "calibrate": calibrate_stage,
    "tune": tune_stage,
    "evaluate": evaluate_stage,
}
