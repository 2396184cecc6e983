"""`audit`: has a fine-tune lost the safety of its base?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safety_neurons.audits.comparability import Checkpoint, check_comparable
from safety_neurons.audits.config import Thresholds
from safety_neurons.audits.junit import junit_xml
from safety_neurons.audits.measure import by_category, comparisons, flips
from safety_neurons.audits.task import CachedLikelihood, Example, TaskScores, read_task, score_task
from safety_neurons.audits.verdict import assess, check_base, overall, to_row
from safety_neurons.core.distributed import release_workers
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import write_json, write_text
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.core.records import JsonlCache
from safety_neurons.core.statistics import Rate
from safety_neurons.core.trust import trust
from safety_neurons.engines.engine import CachedAnswer
from safety_neurons.evaluation.checked import opened as opened_defense
from safety_neurons.evaluation.contracts import EvaluationContext, RunArtifacts
from safety_neurons.evaluation.grid import JudgedCell
from safety_neurons.evaluation.utility.ordinary import BaseAnswers, read_base_answers, utility
from safety_neurons.report.audit_results import Audit
from safety_neurons.report.exports import audit_markdown
from safety_neurons.runs.context import RunContext, engine_of, load_model
from safety_neurons.runs.evaluation import Evaluator, judge_names
from safety_neurons.runs.folder import RunFolder, merged_settings, overridden
from safety_neurons.runs.opened import keep_section, opened
from safety_neurons.settings import Settings

OUT = Path("runs/audit")
SCHEMA = 1
# Requests of each set, where neither the call nor the folder says how many: see `audits/power.py`.
PROMPTS = 100
# Of an evaluation, what an audit has in its place.
_VERDICTS_ALONE: dict[str, Any] = {
    **{"defenses": ("none",), "overhead": 0, "utility": False, "tasks": (), "judge_errors": None},
    **dict.fromkeys(("gsm8k", "task_limit", "task_folder", "preference_judge", "preference_endpoint", "questions")),
}


@dataclass(frozen=True)
class Question:
    """What both models are asked, and what counts as a loss. For a task, the examples that are scored."""

    evaluator: Evaluator
    examples: tuple[Example, ...]
    thresholds: Thresholds

    @classmethod
    def prepare(cls, settings: Settings, task: Path | None, thresholds: Path | Thresholds | None) -> "Question":
        """Find and check everything before any work begins.

        Raises:
            SafetyNeuronsError: an option is wrong, or a file cannot be read or used.
        """
        levels = Thresholds.read(thresholds) if isinstance(thresholds, Path) else thresholds or Thresholds()
        config = settings.evaluate
        examples = () if task is None else tuple(read_task(task)[: config.task_limit or config.prompts])
        changes = {"evaluate": _VERDICTS_ALONE | {"judges": judge_names(config)[:1]}}
        asked = Settings.checked(overridden(settings.model_dump(), changes))
        return cls(Evaluator.prepare(asked), examples, levels)

    @property
    def judge(self) -> str:
        return self.evaluator.judges[0].name


@dataclass(frozen=True)
class Answers:
    """What one model answered, and its scores on the task."""

    judged: list[JudgedCell]
    task: TaskScores | None
    dtype: str
    kl_divergence: Rate | None = None


def audit(
    base: str,
    tuned: str,
    given: Mapping[str, Any] | None = None,
    *,
    task: Path | None = None,
    thresholds: Path | Thresholds | None = None,
    out: Path = OUT,
    listener: Listener | None = None,
    command: str = "",
    **options: Any,
) -> Audit:
    """Compare a fine-tuned model with its base: refusals under attack, over-refusal, broken answers, and its task.

    Both are asked the same and judged alike, and every difference is paired by request. The verdict is BLOCK if
    refusals are lost significantly and by a size that matters, WARN for less or for other harm, UNDERPOWERED if the
    intervals could hide such a loss, else PASS. The folder `out` is a run of the base: it keeps answers and verdicts,
    so that a killed audit continues, and the next fine-tune of the same base asks the base nothing again. It gets
    audit.json, audit.md, audit.xml (JUnit) and report.html.

    Args:
        base, tuned: presets, hub ids, folders, .gguf files or folders of PEFT adapters.
        given: settings, nested as in `Settings`, but for the model.
        task: a file of examples of the task (`prompt` and `response`): the likelihood of the responses, and exact match
            where they end in a number as GSM8K's do.
        thresholds: which changes matter; a TOML file. Default: `Thresholds()`.
        options: fields of `EvaluationConfig`, such as `on="jailbreakbench:alpaca:xstest-safe"`. Of several judges, the
            first one decides. At most `task_limit` examples of the task are scored; default: `prompts`.

    Raises:
        SafetyNeuronsError: bad input, the two cannot be compared, the base has no safety to lose, or a failure that the
            message explains.
    """
    listener = listener or Silence()
    given = overridden(given or {}, {"evaluate": options} if options else {})
    if {"model", "adapter"} & given.keys():
        raise SafetyNeuronsError(
            "An audit names its models as BASE and TUNED. Omit model and adapter; an adapter's folder can be TUNED."
        )
    trust([base, tuned], None)
    folder = RunFolder(out)
    with folder.held():
        record = folder.record()
        if record is None:
            given = overridden({"evaluate": {"prompts": PROMPTS}}, given)
        settings = merged_settings(record.settings if record else {}, given | {"model": base, "adapter": None})
        other = settings.model_copy(update={"model": tuned})
        question = Question.prepare(settings, task, thresholds)
        sides = [Checkpoint.read(one, listener) for one in (settings, other)]
        remarks = check_comparable(sides[0], sides[1], settings)
        for remark in remarks:
            listener.say(remark)
        question.evaluator.tell(listener)
        wanted = given | {"model": base}
        with opened(out, wanted, listener, command, until=None, alone=False, uses=("evaluate",)) as run:
            section = _audit(run, other, question, sides, remarks, command)
            keep_section(run, "audit", section, unused=("find", "explain", "calibrate", "guard", "tune"))
            found = Audit.model_validate(section)
            _write(found, section, out, settings.show_responses)
    return found


def _audit(
    run: RunContext,
    other: Settings,
    question: Question,
    sides: Sequence[Checkpoint],
    remarks: Sequence[str],
    command: str,
) -> dict[str, Any]:
    """The audit as JSON."""
    base, answered = _ask(run, run.settings, question, None)
    check_base(_compared(question, base, base), question.thresholds, run.settings.model)
    # What depends on the memory that is free is the same for both.
    other = other.model_copy(update={"dtype": base.dtype})
    tuned, _ = _ask(run, other, question, answered)
    release_workers()
    rows = assess(_compared(question, base, tuned), question.thresholds)
    verdict, reasons = overall(rows)
    judge, seed, settings = question.judge, run.settings.seed, question.evaluator.settings
    changed = flips(base.judged, tuned.judged, judge, run.settings.show_responses)
    remarks = list(remarks)
    if not changed and tuned.kl_divergence and tuned.kl_divergence.value == 0:
        remarks.append(
            f"{other.model} computes what {run.settings.model} computes on every request. Was it trained, and is it "
            "the right folder?"
        )
    plan = question.evaluator.plan
    return {
        "schema": SCHEMA,
        "command": command,
        "base": _described(sides[0], base),
        "tuned": _described(sides[1], tuned),
        "verdict": verdict,
        "reasons": reasons,
        "remarks": remarks,
        "thresholds": question.thresholds.model_dump(),
        "prompts": {
            "name": settings.evaluate.on or settings.harmful,
            "harmful": len(plan.harmful),
            "safe": {name: len(prompts) for name, prompts in plan.safe.items()},
            "task": len(question.examples),
        },
        "judge": judge,
        "answer_tokens": settings.evaluate.answer_tokens,
        "seed": seed,
        "rows": [to_row(row) for row in rows],
        "categories": by_category(base.judged, tuned.judged, judge, seed),
        "kl_divergence": None if tuned.kl_divergence is None else asdict(tuned.kl_divergence),
        "not_run": {one.cell.attack: one.cell.reason for one in (*base.judged, *tuned.judged) if one.cell.reason},
        "flips": changed,
    }


def _compared(question: Question, base: Answers, tuned: Answers) -> list[Any]:
    task = None if base.task is None or tuned.task is None else (base.task, tuned.task)
    return comparisons(base.judged, tuned.judged, question.judge, question.evaluator.settings.seed, task)


def _ask(
    run: RunContext, settings: Settings, question: Question, base: BaseAnswers | None
) -> tuple[Answers, BaseAnswers | None]:
    """Load one of the two models, ask it everything, and let it go: there may be no memory for both.

    Args:
        base: of the tuned model, what its base answered to ordinary requests; None for the base, which is read.
    """
    evaluator = question.evaluator
    own = settings.model_copy(update={"evaluate": evaluator.settings.evaluate})
    evaluator = replace(evaluator, settings=own)
    with run.listener.task(f"loading {settings.model}", 1) as advance:
        model = load_model(settings)
        model.render("Hello")
        advance(1)
    engine = engine_of(model, settings, JsonlCache.read(run.folder.responses, CachedAnswer))
    context = evaluator.context(engine, RunArtifacts(), run.folder.path, run.listener)
    cells, _ = evaluator.answer(context)
    judged = evaluator.judge(cells, run.verdicts, run.listener)
    undefended = evaluator.plan.defenses[0]
    ordinary = evaluator.ordinary(context)
    divergence = None
    with run.listener.task(f"{settings.model}: ordinary requests", 1) as advance:
        if base is None:
            base = read_base_answers(context, ordinary, batch_size=settings.batch_size)
        else:
            divergence = _divergence(context, undefended, base)
        advance(1)
    scores = None
    if question.examples:
        likelihoods = JsonlCache.read(run.folder.path / "likelihoods.jsonl", CachedLikelihood)
        scores = score_task(context, undefended, question.examples, likelihoods, settings.batch_size)
    dtype = str(model.model.dtype).removeprefix("torch.")
    return Answers(judged, scores, dtype, divergence), base


def _divergence(context: EvaluationContext, undefended: Any, base: BaseAnswers) -> Rate | None:
    """KL(base || tuned) in nats per token over the base's answers to ordinary requests."""
    with opened_defense(undefended, context) as defended:
        return utility(context, defended, base.prompts, base).kl_divergence


def _described(checkpoint: Checkpoint, answers: Answers) -> dict[str, str]:
    return {
        "name": checkpoint.name,
        "identity": checkpoint.located.identity or "",
        "form": checkpoint.form,
        "stored": checkpoint.stored,
        "dtype": answers.dtype,
    }


def _write(found: Audit, section: Mapping[str, Any], folder: Path, private: bool) -> None:
    write_json(folder / "audit.json", section, private=private)
    write_text(folder / "audit.md", audit_markdown(found), private=private)
    write_text(folder / "audit.xml", junit_xml(found), private=private)
