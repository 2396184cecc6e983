"""The stages in order over a run folder: what is done is not redone; what changed is, and the run says so."""

import datetime
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import exists, write_json
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.models.locate import locate
from safety_neurons.prompts import PromptSet, load_prompts, tell
from safety_neurons.report.record import PROMPT_SETS, CoverageRecord, ModelRecord, PromptsRecord, RunRecord, StageRecord
from safety_neurons.report.results import RunResults
from safety_neurons.runs.folder import (
    SHARED,
    SPEED,
    STAGES,
    RunFolder,
    changed_settings,
    inputs_of,
    merged_settings,
    needed_for,
    stage_fingerprints,
)
from safety_neurons.runs.kept_results import current_results, kept_results, merge_stage
from safety_neurons.runs.outside import tell_outside
from safety_neurons.runs.stage_files import Lost, hashes, left_by, lost
from safety_neurons.settings import Settings, without_permissions
from safety_neurons.tuning.corpus import Corpus

if TYPE_CHECKING:
    from safety_neurons.models.chat import ChatModel
    from safety_neurons.runs.context import RunContext
    from safety_neurons.runs.stages import StageResult

PACKAGES = ("safety-neurons", "torch", "transformers", "accelerate", "safetensors", "numpy")


def run(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    until: str = "report",
    listener: Listener | None = None,
    command: str = "",
) -> RunResults:
    """Bring a run folder up to date and return its results.

    Args:
        given: settings that override the folder's own, nested as in `Settings`.
        until: the last stage to run. Runs missing prerequisite stages first.

    Raises:
        SafetyNeuronsError: bad input, another run's folder, or a failure that the message explains.
    """
    return bring_up(path, given or {}, until, listener or Silence(), command)


def bring_up(
    path: Path,
    given: Mapping[str, Any],
    until: str | None,
    listener: Listener,
    command: str,
    uses: Sequence[str] = (),
    is_told: bool = False,
) -> RunResults:
    """`run`, for commands that do more with a run than its stages.

    Args:
        until: as in `run`; None for a command that needs no stage, but the record of the run.
        uses: the stages whose settings the command itself uses afterwards.
        is_told: whether the command has said what the record names outside of the folder.
    """
    folder = RunFolder(path)
    with folder.held():
        return RunResults.of(_run_held(folder, given, until, listener, command, uses, is_told))


def _run_held(
    folder: RunFolder,
    given: Mapping[str, Any],
    until: str | None,
    listener: Listener,
    command: str,
    uses: Sequence[str],
    is_told: bool,
) -> dict[str, Any]:
    record = folder.record()
    if folder.lost_record:
        _tell_loss(folder, record, given, listener)
    stored = record.settings if record else {}
    settings = merged_settings(stored, given)
    opening = _Opening(folder, settings, read_prompts(settings), listener, given, command, uses, is_told)
    _check_inputs(settings, opening.prompts)
    wanted = [] if until is None else needed_for(until, settings)
    if record is None or without_permissions(stored) != settings.to_record():
        _check_names(settings, {*given, *wanted})
    identity = locate(settings.model, opening.listener, settings.adapter).identity
    context = None
    if identity is None:
        # Only a model that was fetched says which commit it is.
        opening = opening.told(stored, wanted)
        context = opening.open()
        identity = context.model.identity
    _check_same_run(opening, record, identity)
    prints = stage_fingerprints(settings, identity, opening.prompts)
    return _run(opening, record, context, wanted, prints)


def _tell_loss(folder: RunFolder, record: RunRecord | None, given: Mapping[str, Any], listener: Listener) -> None:
    """A run without its run.json goes on with the copy in results.json, or begins anew with what is cached.

    Raises:
        SafetyNeuronsError: nothing says which model it is of.
    """
    if record is not None:
        listener.say(f"{folder.record_file} is missing: it is written again from the copy in {folder.results}.")
        folder.write_record(record)
    elif "model" not in given:
        raise SafetyNeuronsError(
            f"{folder.path} lost its record, run.json, and results.json has no copy. Name the run's settings again, "
            "its model among them: what is cached is used."
        )
    else:
        listener.say(f"{folder.path} lost its record, so all stages are done again; what is cached is used.")


def read_prompts(settings: Settings) -> dict[str, PromptSet]:
    """The prompt sets of a run, by their role."""
    return {name: load_prompts(getattr(settings, name), settings.column, settings.data_dir) for name in PROMPT_SETS}


@dataclass(frozen=True)
class _Opening:
    """What a run is opened with. Opening it imports torch; a finished run answers without waiting for that."""

    folder: RunFolder
    settings: Settings
    prompts: dict[str, PromptSet]
    listener: Listener
    given: Mapping[str, Any]
    command: str
    uses: Sequence[str]
    is_told: bool

    def told(self, stored: Mapping[str, Any], stages: Sequence[str]) -> Self:
        """Say what the record names outside of the folder for these stages and for `uses`, unless it was said."""
        if not self.is_told:
            tell_outside(self.folder.path, stored, self.given, self.settings, {*stages, *self.uses}, self.listener)
        return replace(self, is_told=True)

    def open(self) -> "RunContext":
        from safety_neurons.core.distributed import process_count
        from safety_neurons.runs.context import RunContext

        if self.settings.device_map is not None and process_count() > 1:
            raise SafetyNeuronsError(
                "device_map spreads one model over all devices, and torchrun gives each process a model and a device "
                "of its own: leave one of the two out."
            )
        return RunContext(self.folder, self.settings, self.prompts, self.listener, self.given, self.command)


def _check_inputs(settings: Settings, prompts: Mapping[str, PromptSet]) -> None:
    """Check files and splits before any work: nobody wants to wait for a mistake."""
    for name in PROMPT_SETS:
        if name != "contrast":
            prompts[name].split("test")
            prompts[name].split("validation")
        if getattr(settings.tune, name, True):
            prompts[name].split("train")
    if settings.tune.corpus is not None and not Corpus.load(settings.tune.corpus).pairs:
        raise SafetyNeuronsError(
            f"The corpus {settings.tune.corpus} holds no pairs to learn from. Add some, or omit tune.corpus."
        )


def _check_names(settings: Settings, sections: set[str]) -> None:
    """Check that score, attacks, defenses and judges of these sections exist, and that their options fit together."""
    from safety_neurons.evaluation import judges
    from safety_neurons.neurons import scores
    from safety_neurons.runs.evaluation import check_members

    if "find" in sections:
        scores.get(settings.find.score)
    if "evaluate" in sections:
        check_members(settings.evaluate)
    elif {"calibrate", "tune"} & sections:
        judges.rules(settings.evaluate.judge)


def _check_same_run(opening: _Opening, record: RunRecord | None, identity: str) -> None:
    if record is None:
        return
    path, settings = opening.folder.path, opening.settings
    old = record.model
    if old.name != settings.model or old.identity != identity:
        merged = f" with the adapter {settings.adapter}" if settings.adapter else ""
        raise SafetyNeuronsError(
            f"{path} holds a run of another model ({old.name}, {old.identity[:12]}), not of "
            f"{settings.model}{merged} ({identity[:12]}). Choose another folder."
        )
    for name, found in opening.prompts.items():
        if (before := record.prompts[name]).sha256 != found.sha256:
            raise SafetyNeuronsError(
                f"{path} holds a run with other {name} prompts ({before.name}, now {found.name}). "
                "Choose another folder."
            )


def _run(
    opening: _Opening,
    record: RunRecord | None,
    context: "RunContext | None",
    wanted: Sequence[str],
    prints: Mapping[str, str],
) -> dict[str, Any]:
    folder, settings, listener = opening.folder, opening.settings, opening.listener
    stages = dict(record.stages) if record else {}
    kept, content = kept_results(folder, stages, listener)
    same = {stage: entry for stage, entry in stages.items() if entry.fingerprint == prints.get(stage)}
    found = {stage: lost(folder, stage, entry, kept) for stage, entry in same.items()}
    losses = {stage: loss for stage, loss in found.items() if loss is not None}
    current = set(same.keys() - losses.keys())
    todo = [stage for stage in wanted if stage not in current]
    # What is stale leaves the results, so it is not done when the settings become what they were.
    stages = {stage: entry for stage, entry in stages.items() if stage in current}
    stored = record.settings if record else {}
    opening = opening.told(stored, todo)
    if not todo and (wanted or exists(folder.results)):
        if not opening.uses and (unused := changed_settings(without_permissions(stored), settings.to_record())):
            listener.say(f"Nothing here depends on what was changed, so it is not kept: {'; '.join(unused.values())}.")
        whole = len(wanted) == len(STAGES)
        if wanted:
            done = f"Done already: {', '.join(wanted)}."
            listener.say(f"{folder.path} is up to date: nothing to do." if whole else done)
        return content
    tell(opening.prompts, listener)
    if "tune" in todo:
        _check_shard(settings)
    outdated = _say_changes(opening, record, todo, prints)
    outdated |= _say_losses(opening, losses, todo)
    if skipped := [stage for stage in wanted if stage not in todo]:
        listener.say(f"Done already: {', '.join(skipped)}.")
    if context is None and todo != ["report"]:
        context = opening.open()
    before = record or RunRecord()
    # Loads the model: what cannot be loaded replaces nothing.
    model = before.model if context is None else _describe_model(context.model)
    if outdated or folder.lost_record:
        listener.say(f"The run as it was is kept in {folder.keep_replaced()}.")
    record = RunRecord(
        model=model,
        settings=settings.to_record(),
        seed=settings.seed,
        command=opening.command or before.command,
        started=before.started or _now(),
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        prompts={name: _describe(found) for name, found in opening.prompts.items()},
        coverage=before.coverage if context is None else _describe_coverage(context.model),
        stages=stages,
    )
    folder.write_record(record)
    results = current_results(content, current)
    results["run"] = record.to_json()
    if not todo:
        write_json(folder.results, results, private=settings.show_responses)
    while todo := [stage for stage in wanted if stage not in current]:
        stage = todo[0]
        if context is not None and not SHARED & set(todo):
            _go_on_alone(stage, listener)
        started = time.monotonic()
        if context is not None and stage != "report":
            merge_stage(results, stage, _perform(stage, context))
        else:
            _write_report(folder, results)
        seconds = round(time.monotonic() - started, 1)
        files = hashes(folder, stage, results)
        stages[stage] = StageRecord(fingerprint=prints[stage], seconds=seconds, finished=_now(), files=files)
        current.add(stage)
        if stage in losses and files != same[stage].files:
            stale = _depending_on(stage, settings) & current
            _drop(opening, results, stages, stale, stage)
            current -= stale
        record = record.model_copy(update={"stages": dict(stages)})
        results["run"] = record.to_json()
        write_json(folder.results, results, private=settings.show_responses)
        folder.write_record(record)
    left = [path for stage in wanted for path in left_by(folder, stage)]
    for path in (folder.record_file, folder.results, *left, *[folder.report] * ("report" in wanted)):
        if not exists(path):
            raise SafetyNeuronsError(
                f"{path} was removed while this process worked on the run. Run the same command again: it is made anew."
            )
    return results


def _depending_on(stage: str, settings: Settings) -> set[str]:
    """The later stages that use what a stage leaves, directly or not."""
    depending = {stage}
    for later, (earlier, _) in inputs_of(settings).items():
        if depending & set(earlier):
            depending.add(later)
    return (depending - {stage}) | {"report"}


def _drop(
    opening: _Opening, results: dict[str, Any], stages: dict[str, StageRecord], stale: set[str], made: str
) -> None:
    """Forget finished stages that used what `made` left before, where it has now left something else."""
    if not stale:
        return
    named = ", ".join(stage for stage in STAGES if stage in stale)
    opening.listener.say(
        f"What `{made}` left is not the same as before, so these stages are out of date: {named}. The run as it was is "
        f"kept in {opening.folder.keep_replaced()}."
    )
    for stage in stale:
        del stages[stage]
    left = current_results(results, set(stages))
    results.clear()
    results.update(left)


def _say_losses(opening: _Opening, losses: Mapping[str, Lost], todo: Sequence[str]) -> bool:
    """Say which finished stages lost what they left; whether there is something to keep of it."""
    for what in dict.fromkeys(loss.what for loss in losses.values()):
        stages = [stage for stage in STAGES if stage in losses and losses[stage].what == what]
        opening.listener.say(f"{what}, so {_follows(stages, todo)}.")
    return any(loss.kept for loss in losses.values())


def _follows(stages: Sequence[str], todo: Sequence[str]) -> str:
    """What happens to stages that are out of date."""
    redone, later = (", ".join(one for one in stages if (one in todo) is wanted) for wanted in (True, False))
    follows = [f"these stages are redone: {redone}"] if redone else []
    follows += [f"these are out of date until a command redoes them: {later}"] if later else []
    return "; ".join(follows)


def _say_changes(opening: _Opening, record: RunRecord | None, todo: Sequence[str], prints: Mapping[str, str]) -> bool:
    """Say which settings changed and what follows; whether something that is finished, or trained so far, is lost."""
    if record is None:
        return False
    stages, say = record.stages, opening.listener.say
    changed = changed_settings(without_permissions(record.settings), opening.settings.to_record())
    if speed := [said for path, said in changed.items() if path in SPEED]:
        say(f"{'; '.join(speed)}. This changes speed, memory and rounding only: finished stages and answers are kept.")
    others = [said for path, said in changed.items() if path not in SPEED]
    outdated = [one for one in STAGES[:-1] if one in stages and stages[one].fingerprint != prints[one]]
    if outdated:
        what = f"Settings changed ({'; '.join(others)})" if others else "The content of a file changed"
        say(f"{what}, so {_follows(outdated, todo)}.")
    return bool(outdated or (others and "tune" in todo and exists(opening.folder.checkpoint)))


def _check_shard(settings: Settings) -> None:
    from safety_neurons.core.distributed import process_count

    if settings.tune.shard and process_count() == 1:
        raise SafetyNeuronsError(
            "tune.shard shares the model out among several processes, and there is one: start them with torchrun, or "
            "leave it out."
        )


def _go_on_alone(stage: str, listener: Listener) -> None:
    """Of several processes, started by torchrun, only the first does what comes after the shared stages."""
    from safety_neurons.core.distributed import process_count, release_workers

    if process_count() > 1:
        listener.say(
            f"Only {', '.join(sorted(SHARED))} are shared among the {process_count()} processes: the first continues "
            f"alone ({stage})."
        )
        release_workers()


def _perform(stage: str, context: "RunContext") -> "StageResult":
    from safety_neurons.runs.stages import IMPLEMENTATIONS

    return IMPLEMENTATIONS[stage](context)


def _describe_model(model: "ChatModel") -> ModelRecord:
    from safety_neurons.models.reasoning import thinking_of

    return ModelRecord(
        name=model.name,
        identity=model.identity,
        dtype=str(model.model.dtype).removeprefix("torch."),
        device=str(model.device),
        parameters=model.parameters,
        thinking=thinking_of(model),
    )


def _describe_coverage(model: "ChatModel") -> CoverageRecord:
    return CoverageRecord.model_validate(asdict(model.coverage))


def _write_report(folder: RunFolder, results: dict[str, Any]) -> None:
    # Imported late, with plotly.
    from safety_neurons.report.page import write_report

    write_report(RunResults.of(results), folder.report)


def _describe(prompts: PromptSet) -> PromptsRecord:
    counts = {split: sum(prompt.split == split for prompt in prompts) for split in ("train", "validation", "test")}
    read = {"column": prompts.column, "notes": list(prompts.notes), "duplicates": prompts.duplicates}
    named = {"name": prompts.name, "source": prompts.source, "sha256": prompts.sha256}
    return PromptsRecord.model_validate(named | read | counts)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
