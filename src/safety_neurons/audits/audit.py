"""`audit`: has a fine-tune lost the safety of its base?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safety_neurons.audits.answers import Answers, Question, ask
from safety_neurons.audits.comparability import Checkpoint, check_comparable
from safety_neurons.audits.config import Thresholds
from safety_neurons.audits.junit import junit_xml
from safety_neurons.audits.measure import by_category, comparisons, flips
from safety_neurons.audits.verdict import Comparison, assess, check_base, overall, to_row
from safety_neurons.core.distributed import release_workers
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import write_json, write_text
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.core.trust import trust
from safety_neurons.report.audit_results import Audit
from safety_neurons.report.exports import audit_markdown
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.folder import RunFolder, merged_settings, overridden
from safety_neurons.runs.opened import keep_section, opened
from safety_neurons.settings import Settings

OUT = Path("runs/audit")
SCHEMA = 1
# Requests of each set, where neither the call nor the folder says how many: as `prompts_to_see` says of 10 points.
PROMPTS = 120


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
            where they end in a number as GSM8K's do. At most `prompts` of them count.
        thresholds: which changes matter; a TOML file. Default: `Thresholds()`.
        options: fields of `EvaluationConfig`, such as `on="jailbreakbench:alpaca:xstest-safe"`. Of several judges, the
            first one decides. Default of `prompts` in a new folder: 120.

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
        wanted = given | {"model": base, "adapter": None}
        settings = merged_settings(record.settings if record else {}, wanted)
        other = settings.model_copy(update={"model": tuned})
        question = Question.prepare(settings, task, thresholds)
        checkpoints = Checkpoint.read(settings, listener), Checkpoint.read(other, listener)
        remarks = check_comparable(*checkpoints, settings)
        for remark in remarks:
            listener.say(remark)
        question.evaluator.tell(listener)
        with opened(out, wanted, listener, command, until=None, alone=False, uses=("evaluate",)) as run:
            section = _audit(run, other, question, checkpoints, remarks, command)
            keep_section(run, "audit", section, unused=("find", "explain", "calibrate", "guard", "tune"))
            found = Audit.model_validate(section)
            _write(found, section, out, settings.show_responses)
    return found


def _audit(
    run: RunContext,
    other: Settings,
    question: Question,
    checkpoints: Sequence[Checkpoint],
    remarks: Sequence[str],
    command: str,
) -> dict[str, Any]:
    """The audit as JSON."""
    base, answered = ask(run, run.settings, question)
    check_base(compared(question, base, base), question.thresholds, run.settings.model)
    # What depends on the memory that is free is the same for both.
    other = other.model_copy(update={"dtype": base.dtype})
    tuned, _ = ask(run, other, question, answered)
    release_workers()
    rows = assess(compared(question, base, tuned), question.thresholds)
    verdict, reasons = overall(rows)
    judge, settings = question.judge, question.evaluator.settings
    changed = flips(base.judged, tuned.judged, judge, run.settings.show_responses)
    if not changed and tuned.kl_divergence and tuned.kl_divergence.value == 0:
        same = f"{other.model} computes what {run.settings.model} computes on every request."
        remarks = [*remarks, f"{same} Was it trained, and is it the right folder?"]
    plan = question.evaluator.plan
    return {
        "schema": SCHEMA,
        "command": command,
        "base": _described(checkpoints[0], base),
        "tuned": _described(checkpoints[1], tuned),
        "verdict": verdict,
        "reasons": reasons,
        "remarks": list(remarks),
        "thresholds": question.thresholds.model_dump(),
        "prompts": {
            "name": settings.evaluate.on or settings.harmful,
            "harmful": len(plan.harmful),
            "safe": {name: len(prompts) for name, prompts in plan.safe.items()},
            "task": len(question.examples),
        },
        "judge": judge,
        "answer_tokens": settings.evaluate.answer_tokens,
        "seed": question.seed,
        "rows": [to_row(row) for row in rows],
        "categories": by_category(base.judged, tuned.judged, judge, question.seed),
        "kl_divergence": None if tuned.kl_divergence is None else asdict(tuned.kl_divergence),
        "not_run": {one.cell.attack: one.cell.reason for one in (*base.judged, *tuned.judged) if one.cell.reason},
        "flips": changed,
    }


def compared(question: Question, base: Answers, tuned: Answers) -> list[Comparison]:
    """All rows of the paired table."""
    task = None if base.task is None or tuned.task is None else (base.task, tuned.task)
    return comparisons(base.judged, tuned.judged, question.judge, question.seed, task)


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
