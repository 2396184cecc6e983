"""What each stage of a run does: it reads the artifacts before it and leaves its own, with its rows of the table."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from safety_neurons.calibration.clouds import AWAY, MOST_PROMPTS, read_clouds
from safety_neurons.calibration.config import Toward
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.statistics import Row, Verdict, rate, row
from safety_neurons.engines.engine import CachedEngine
from safety_neurons.evaluation.contracts import Response, RunArtifacts
from safety_neurons.evaluation.grid import JudgedCell
from safety_neurons.explanation.projection import explain
from safety_neurons.explanation.readout import mean_residuals
from safety_neurons.neurons import scores
from safety_neurons.neurons.find import FALSE_DISCOVERY_RATE
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.artifacts import load_corpus, load_delta
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.corpus import corpus_of
from safety_neurons.runs.evaluation import Evaluator
from safety_neurons.runs.find import score_neurons_of
from safety_neurons.runs.folder import TUNED
from safety_neurons.runs.guard import guard_of
from safety_neurons.runs.percents import neurons_to_tune, random_neurons_of, unusable
from safety_neurons.runs.selection import select_delta
from safety_neurons.runs.workers import train
from safety_neurons.tuning.checkpoint import discard
from safety_neurons.tuning.delta import outside_digest

# Number of answers per group that the report shows.
EXAMPLES = 3


@dataclass(frozen=True)
class StageResult:
    """A stage's part of the results: its rows, and sections of its own ("neurons", "words" ...)."""

    rows: tuple[Row, ...] = ()
    sections: dict[str, Any] | None = None
    examples: tuple[dict[str, Any], ...] = ()


def find_stage(run: RunContext) -> StageResult:
    settings = run.settings.find
    score = scores.get(settings.score)
    scored = score_neurons_of(run, title=f"finding neurons ({score.name})")
    neurons = scored.top(settings.percent, settings.scope, settings.selection)
    if not len(neurons):
        problem = f"{settings.score} found no neurons: harmful and benign prompts rank the same ones"
        raise unusable(run, scored, "find.percent", settings.percent, problem)
    neurons.save(run.folder.neurons, run.folder.directions)
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
            [prompt.text for prompt in run.split(name, "train", settings.lens_prompts)]
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
    test = {name: run.split(name, "test", count) for name in ("harmful", "benign")}
    random = random_neurons_of(run)
    rows: list[Row] = []
    examples: list[dict[str, Any]] = []

    def measure(subject: str, condition: str, name: str, engine: CachedEngine) -> None:
        answers = run.ask(test[name], f"{subject}, {condition}: {name} prompts", engine=engine)
        names = {
            "stage": "calibrate",
            "subject": subject,
            "condition": condition,
            "prompts": name,
            "attack": "direct",
        }
        found = rate([answer.verdict for answer in answers], "refused")
        rows.append(row(found, **names, defense="none", judge=run.judge.name, metric="refused"))
        shown = [
            (answer.prompt.text, Response.of(answer.sent, answer.completion), answer.verdict)
            for answer in answers[:EXAMPLES]
        ]
        examples.extend(_examples(run, names, shown))

    for name in test:
        measure("base", "none", name, run.engine)
    directions: tuple[tuple[Toward, str], ...] = (("conformity", "harmful"), ("rejection", "benign"))
    for toward, name in directions:
        for subject, neurons in (("found", run.neurons), ("random", random)):
            with run.calibrated(toward, neurons) as engine:
                measure(subject, f"toward {toward}", name, engine)
    sections = {"control": {"indices": random.indices()}, "clouds": two_clouds(run, random)}
    return StageResult(tuple(rows), sections=sections, examples=tuple(examples))


def two_clouds(run: RunContext, random: NeuronSet) -> dict[str, Any]:
    """Test prompts by what the found neurons do, as they are and calibrated; no answer is made."""
    settings = run.settings
    count = min(settings.evaluate.prompts, MOST_PROMPTS)
    prompts = {side: run.split(side, "test", count) for side in AWAY}
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
            config=settings.calibrate,
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
    if corpus.notes:
        run.listener.say(f"{run.settings.tune.corpus}: {'; '.join(corpus.notes)}.")
    run.listener.say("corpus: " + ", ".join(f"{count} {kind}" for kind, count in corpus.counts().items()))
    model, neurons = run.model, neurons_to_tune(run)
    before = outside_digest(model, neurons)
    started = time.monotonic()
    trained = train(run, neurons, corpus, run.folder.checkpoint, f"{len(neurons):,} neurons")
    seconds = time.monotonic() - started
    delta, curve = select_delta(run, trained, settings)
    with delta.apply(model):
        unchanged = outside_digest(model, neurons) == before
    if not unchanged:
        raise SafetyNeuronsError("Tuning moved weights outside the neurons. This is a bug: please report it.")
    delta.save(run.folder.delta)
    # Until here, a killed run selects again without training again.
    discard(run.folder.checkpoint)
    return StageResult(
        sections={
            "training": {
                "loss": [asdict(step) for step in trained.steps],
                "scale_curve": curve and curve.model_dump(mode="json"),
                "corpus": corpus.counts(),
                "trainable_parameters": delta.parameters,
                "share_of_parameters": delta.parameters / model.parameters,
                "unchanged_outside": unchanged,
                "seconds": seconds,
            }
        }
    )


def evaluate_stage(run: RunContext) -> StageResult:
    evaluator = Evaluator.prepare(run.settings)
    # The run's own sets were told of when it was opened.
    if run.settings.evaluate.on is not None:
        evaluator.tell(run.listener)
    artifacts = artifacts_of(run, run.settings.evaluate.defenses)
    context = evaluator.context(run.engine, artifacts, run.folder.path, run.listener)
    cells, measured = evaluator.answer(context)
    judged = evaluator.judge(cells, run.verdicts, run.listener)
    evaluation = evaluator.results(judged, measured, run.command)
    # `guard RUN` can replace the guard: this evaluation is then out of date.
    evaluation["guard"] = None if artifacts.guard is None else artifacts.guard.digest
    return StageResult(sections={"evaluation": evaluation}, examples=tuple(_cell_examples(run, judged)))


def artifacts_of(run: RunContext, defenses: Sequence[str]) -> RunArtifacts:
    """What defenses and attacks work with; the run's guard is fitted first where it is needed and missing."""
    needed = {name.partition(":")[0] for name in defenses}
    tuned = bool(TUNED & needed)
    return RunArtifacts(
        neurons=run.neurons,
        guard=guard_of(run) if "guard" in needed else None,
        delta=load_delta(run.folder) if tuned else None,
        corpus=load_corpus(run.folder) if tuned else None,
        alpha_conformity=run.settings.calibrate.alpha_conformity,
    )


# What the report calls the answers behind a defense.
_CONDITIONS = {"none": ("base", "before"), "safetuning": ("tuned", "after")}


def _cell_examples(run: RunContext, judged: Sequence[JudgedCell]) -> Iterator[dict[str, Any]]:
    for one in judged:
        cell = one.cell
        subject, condition = _CONDITIONS.get(cell.defense, (cell.defense, cell.defense))
        verdicts = one.verdicts(next(iter(one.judgments)))
        shown = [
            (request.text, response, verdict)
            for request, response, verdict in zip(cell.requests, cell.responses, verdicts, strict=True)
            if response is not None and verdict is not None
        ]
        names = {
            "stage": "evaluate",
            "subject": subject,
            "condition": condition,
            "prompts": cell.prompts,
            "attack": cell.attack,
        }
        yield from _examples(run, names, shown[:EXAMPLES])


def _examples(
    run: RunContext, names: Mapping[str, str], shown: Sequence[tuple[str, Response, Verdict]]
) -> list[dict[str, Any]]:
    """Answers for the report, with the thoughts before them.

    Unless show_responses is set, answers that comply with a harmful prompt are redacted, and so is what a model thinks
    about one.
    """
    hidden = names["prompts"] == "harmful" and not run.settings.show_responses
    return [
        {
            **names,
            "prompt": prompt,
            "response": None if hidden and verdict != "refused" else response.text,
            "reasoning": "" if hidden else response.reasoning,
            "verdict": verdict,
        }
        for prompt, response, verdict in shown
    ]


IMPLEMENTATIONS: dict[str, Callable[[RunContext], StageResult]] = {
    "find": find_stage,
    "explain": explain_stage,
    "calibrate": calibrate_stage,
    "tune": tune_stage,
    "evaluate": evaluate_stage,
}
