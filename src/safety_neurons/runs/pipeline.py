"""The stages in order over a run folder: what is done is not redone, what changed is, and it says so."""

import datetime
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, read_json, write_json
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.models.locate import hub_identity, locate
from safety_neurons.prompts import PromptSet, load_prompts
from safety_neurons.runs.folder import SCHEMA, RunFolder, merged_settings
from safety_neurons.runs.plan import PROMPT_SETS, SHARED, STAGES, needed_for, stage_fingerprints
from safety_neurons.settings import Settings
from safety_neurons.tuning.corpus import Corpus

if TYPE_CHECKING:
    from safety_neurons.models.chat import ChatModel
    from safety_neurons.runs.context import RunContext, StageResult


PACKAGES = ("safety-neurons", "torch", "transformers", "accelerate", "safetensors", "numpy")


def run(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    until: str = "report",
    listener: Listener | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Bring a run folder up to date and return its results.

    Args:
        given: settings that override the folder's own, nested as in `Settings`.
        until: the last stage to run; the stages that it needs are run first where they are missing.

    Raises:
        SafetyNeuronsError: bad input, another run's folder, or a failure that the message explains.
    """
    listener = listener or Silence()
    folder = RunFolder(path)
    record = folder.record()
    settings = merged_settings(record.get("settings", {}), given or {})
    prompts = {name: load_prompts(getattr(settings, name), settings.column, settings.data_dir) for name in PROMPT_SETS}
    _check_inputs(settings, prompts)
    source, identity = locate(settings.model, listener)
    work = None
    if identity is None and (identity := hub_identity(source)) is None:
        # Only a model that was fetched says which commit it is.
        work = _workplace(folder, settings, prompts, listener)
        identity = work.model.identity
    _check_same_run(folder, record, settings, identity, prompts)
    prints = stage_fingerprints(settings, identity, prompts)
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    lock = path / ".lock"
    try:
        with disk_errors(path), filelock.FileLock(lock, timeout=0):
            return _run(folder, record, settings, prompts, work, needed_for(until), prints, listener, command)
    except filelock.Timeout as error:
        raise SafetyNeuronsError(
            f"Another process is working on {path}. Wait for it, or choose another --out."
        ) from error
    finally:
        # A run that failed before it began leaves no trace.
        if not record and set(path.iterdir()) == {lock}:
            lock.unlink()
            path.rmdir()


def _check_inputs(settings: Settings, prompts: Mapping[str, PromptSet]) -> None:
    """Names, files and splits are checked before any work is done: nobody wants to wait first."""
    from safety_neurons.evaluation import attacks, judges

    for attack in settings.evaluate.attacks:
        attacks.template(attack)
    judges.rules(settings.evaluate.judge)
    for name in PROMPT_SETS:
        if name != "contrast":
            prompts[name].split("test")
        if getattr(settings.tune, name, True):
            prompts[name].split("train")
    if settings.tune.corpus is not None and not Corpus.load(settings.tune.corpus).pairs:
        raise SafetyNeuronsError(f"The corpus {settings.tune.corpus} holds no pairs to learn from.")
    if settings.chat_template is not None and not settings.chat_template.is_file():
        raise SafetyNeuronsError(f"The chat template {settings.chat_template} does not exist.")


def _check_same_run(
    folder: RunFolder, record: Mapping[str, Any], settings: Settings, identity: str, prompts: Mapping[str, PromptSet]
) -> None:
    if not record:
        return
    old_model = record["model"]["name"]
    if old_model != settings.model or record["model"]["identity"] != identity:
        raise SafetyNeuronsError(
            f"{folder.path} holds a run of another model ({old_model}, {record['model']['identity'][:12]}), not of "
            f"{settings.model} ({identity[:12]}). Choose another --out."
        )
    for name, found in prompts.items():
        if record["prompts"][name]["sha256"] != found.sha256:
            raise SafetyNeuronsError(
                f"{folder.path} holds a run with other {name} prompts ({record['prompts'][name]['name']}, "
                f"now {found.name}). Choose another --out."
            )


def _run(
    folder: RunFolder,
    record: dict[str, Any],
    settings: Settings,
    prompts: dict[str, PromptSet],
    work: "RunContext | None",
    wanted: Sequence[str],
    prints: Mapping[str, str],
    listener: Listener,
    command: str,
) -> dict[str, Any]:
    stages: dict[str, Any] = dict(record.get("stages", {}))
    changed = [stage for stage in wanted if stage in stages and stages[stage]["fingerprint"] != prints[stage]]
    kept = _kept_results(folder)
    current = {
        stage for stage in stages if stages[stage]["fingerprint"] == prints[stage] and _is_whole(folder, stage, kept)
    }
    todo = [stage for stage in wanted if stage not in current]
    # What is stale leaves the results, so it is not done when the settings become what they were.
    stages = {stage: entry for stage, entry in stages.items() if stage in current}
    if not todo:
        whole = len(wanted) == len(STAGES)
        listener.say(f"{folder.path} is up to date: nothing to do." if whole else f"Done already: {', '.join(wanted)}.")
        return kept or {}
    if "tune" in todo:
        _check_shard(settings)
    if again := [stage for stage in changed if stage != "report"]:
        listener.say(f"Settings changed, so these stages are redone: {', '.join(again)}.")
    if skipped := [stage for stage in wanted if stage not in todo]:
        listener.say(f"Done already: {', '.join(skipped)}.")
    if work is None and todo != ["report"]:
        work = _workplace(folder, settings, prompts, listener)
    record = {
        "model": record.get("model") if work is None else _describe_model(work.model),
        "settings": settings.model_dump(mode="json"),
        "seed": settings.seed,
        "command": command or record.get("command", ""),
        "started": record.get("started") or _now(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "prompts": {name: _describe(found) for name, found in prompts.items()},
        "coverage": record.get("coverage") if work is None else asdict(work.model.coverage),
        "stages": stages,
    }
    folder.write_record(record)
    results = _current_results(kept or {}, current)
    results["run"] = record
    for number, stage in enumerate(todo):
        if work is not None and not SHARED & set(todo[number:]):
            _go_on_alone(stage, listener)
        started = time.monotonic()
        if work is not None and stage != "report":
            _merge(results, stage, _perform(stage, work))
        else:
            _write_report(folder, results)
        seconds = round(time.monotonic() - started, 1)
        stages[stage] = {"fingerprint": prints[stage], "seconds": seconds, "finished": _now()}
        write_json(folder.results, results)
        folder.write_record(record)
    return results


def _workplace(
    folder: RunFolder, settings: Settings, prompts: dict[str, PromptSet], listener: Listener
) -> "RunContext":
    # Imported late: a finished run answers without waiting for torch.
    from safety_neurons.core.distributed import process_count
    from safety_neurons.neurons import scores
    from safety_neurons.runs.context import RunContext

    if settings.device_map is not None and process_count() > 1:
        raise SafetyNeuronsError(
            "device_map spreads one model over all devices, and torchrun gives each process a model and a device of "
            "its own: leave one of the two out."
        )
    scores.get(settings.find.score)
    return RunContext(folder, settings, prompts, listener)


def _check_shard(settings: Settings) -> None:
    from safety_neurons.core.distributed import process_count

    if settings.tune.shard and process_count() == 1:
        raise SafetyNeuronsError(
            "tune.shard shares the model out among several processes, and there is one: start them with torchrun, or "
            "leave it out."
        )


def _go_on_alone(stage: str, listener: Listener) -> None:
    """Of several processes, started by torchrun, only the first does what comes after the shared stages."""
    from safety_neurons.core.distributed import process_count
    from safety_neurons.runs.workers import release_workers

    if process_count() > 1:
        listener.say(
            f"Only {' and '.join(sorted(SHARED))} are shared among the {process_count()} processes: the first goes on "
            f"alone ({stage})."
        )
        release_workers()


def _perform(stage: str, work: "RunContext") -> "StageResult":
    from safety_neurons.runs.stages import IMPLEMENTATIONS

    return IMPLEMENTATIONS[stage](work)


def _describe_model(model: "ChatModel") -> dict[str, Any]:
    return {
        "name": model.name,
        "identity": model.identity,
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "parameters": model.parameters,
    }


SECTIONS = {
    "neurons": "find",
    "words": "explain",
    "write_share": "explain",
    "vocabulary": "explain",
    "control": "calibrate",
    "clouds": "calibrate",
    "training": "tune",
    # What other commands add to a run; each looks itself whether it is up to date.
    "dose_response": "find",
    "search": "find",
    "guard": "find",
    "adaptive": "tune",
    "auto": "tune",
    "evaluation": "find",
}


def _kept_results(folder: RunFolder) -> dict[str, Any] | None:
    """The results so far; None where the file was lost, which makes all stages undone."""
    return dict(read_json(folder.results)) if folder.results.exists() else None


def _is_whole(folder: RunFolder, stage: str, kept: Mapping[str, Any] | None) -> bool:
    """Whether all that a finished stage left is still there."""
    files = {
        "find": [folder.neurons, folder.directions],
        "tune": [folder.corpus, folder.delta],
        "report": [folder.report],
    }
    return kept is not None and all(path.exists() for path in files.get(stage, []))


def _current_results(kept: Mapping[str, Any], current: set[str]) -> dict[str, Any]:
    """The kept results of the stages whose inputs are as they were; what is stale is dropped."""
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "run": kept.get("run", {}),
        "rows": [row for row in kept.get("rows", []) if row["stage"] in current],
        "examples": [example for example in kept.get("examples", []) if example["stage"] in current],
    }
    return results | {name: kept[name] for name, stage in SECTIONS.items() if name in kept and stage in current}


def _merge(results: dict[str, Any], stage: str, result: "StageResult") -> None:
    for name, new in (("rows", [asdict(row) for row in result.rows]), ("examples", list(result.examples))):
        results[name] = [entry for entry in results[name] if entry["stage"] != stage] + new
    results.update(result.sections or {})


def _write_report(folder: RunFolder, results: dict[str, Any]) -> None:
    from safety_neurons.report import write_report

    write_report(results, folder.report)


def _describe(prompts: PromptSet) -> dict[str, Any]:
    counts = {split: sum(prompt.split == split for prompt in prompts) for split in ("train", "validation", "test")}
    return {"name": prompts.name, "source": prompts.source, "sha256": prompts.sha256, **counts}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
