"""`evaluate`: a run, or runs, models and servers side by side."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safety_neurons.core.addresses import take_credentials
from safety_neurons.core.distributed import release_workers
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import exists, write_json, write_text
from safety_neurons.core.locks import locked
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.core.records import JsonlCache
from safety_neurons.core.trust import trust
from safety_neurons.engines.engine import CachedAnswer, CachedEngine
from safety_neurons.evaluation.contracts import EvaluationContext, RunArtifacts
from safety_neurons.evaluation.grid import Cell
from safety_neurons.evaluation.judging import CachedVerdict
from safety_neurons.evaluation.measures import MEASURES
from safety_neurons.evaluation.summary import SCHEMA
from safety_neurons.models.locate import locate
from safety_neurons.report.exports import evaluation_markdown
from safety_neurons.report.results import Evaluation
from safety_neurons.runs.context import engine_of, load_model, template_options
from safety_neurons.runs.evaluation import Evaluator
from safety_neurons.runs.folder import TUNED, RunFolder, merged_settings, needed_for, overridden
from safety_neurons.runs.opened import opened
from safety_neurons.runs.outputs import check_output
from safety_neurons.runs.outside import tell_outside
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.stages import artifacts_of
from safety_neurons.settings import Settings

OUT = Path("runs/evaluation")


def evaluate(
    targets: str | Path | Sequence[str | Path],
    given: Mapping[str, Any] | None = None,
    *,
    out: Path | None = None,
    served_model: str | None = None,
    listener: Listener | None = None,
    command: str = "",
    **options: Any,
) -> Evaluation:
    """Evaluate a run, or compare runs, models and servers: every attack against every defense, by every judge.

    A single run without `out` is brought up to its stage `evaluate`, and its folder holds the results. Otherwise the
    folder `out` holds evaluation.json and evaluation.md, and the answers and verdicts.

    Args:
        targets: run folders, models (presets, hub ids, folders, files), or addresses of OpenAI-compatible servers.
        given: settings that override the runs' own, nested as in `Settings`.
        out: Default: runs/evaluation.
        served_model: the model's name at the server.
        options: fields of `EvaluationConfig`, such as `attacks=["direct"]`.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    names = [take_credentials(str(one)) for one in ([targets] if isinstance(targets, str | Path) else targets)]
    if not names or len(set(names)) < len(names):
        raise SafetyNeuronsError("Name at least one run or model to evaluate, and each of them once.")
    if served_model is not None and not any(map(is_address, names)):
        raise SafetyNeuronsError("served_model is the model's name at a server: evaluate the server's address.")
    given = given or {}
    # An address that is a target was named in this call, whatever the record of a run says.
    trust(names, None)
    if is_single_run(names, out):
        wanted = overridden(given, {"evaluate": options})
        results = run(Path(names[0]), wanted, until="evaluate", listener=listener, command=command)
        assert results.evaluation is not None
        return results.evaluation
    return _side_by_side(names, given, options, out or OUT, served_model, listener or Silence(), command)


def _side_by_side(
    names: Sequence[str],
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    folder: Path,
    served_model: str | None,
    listener: Listener,
    command: str,
) -> Evaluation:
    RunFolder(folder).check()
    wanted = overridden(given, {"evaluate": options})
    first, *others = (settings_of(name, wanted) for name in names)
    _tell_outside(names, [first, *others], wanted, listener)
    evaluator = Evaluator.prepare(first, [first, *others])
    evaluator.tell(listener)
    # All are asked the same: what the first one's settings say.
    shared = {"evaluate": first.evaluate}
    evaluators = [evaluator, *(replace(evaluator, settings=one.model_copy(update=shared)) for one in others)]
    for name in names:
        check_target(name, given, listener)
    check_output(folder, "evaluation.json", SCHEMA, "evaluation")
    with locked(folder):
        responses = JsonlCache.read(folder / "responses.jsonl", CachedAnswer)
        models: list[str] = []
        answered: list[list[Cell]] = []
        measured: list[dict[str, list[dict[str, Any]]]] = []
        for name, own in zip(names, evaluators, strict=True):
            with _open_target(name, given, own, responses, folder, served_model, listener, command) as context:
                models.append(context.engine.name)
                cells, found = own.answer(context)
                answered.append(cells)
                measured.append(found)
        release_workers()
        # Two runs of one model, or the model and its run, are different rows.
        labels = [
            model if models.count(model) == 1 else f"{model} ({name})"
            for model, name in zip(models, names, strict=True)
        ]
        cells = [replace(cell, model=label) for label, own in zip(labels, answered, strict=True) for cell in own]
        rows = {
            measure: [
                row | {"model": label} for label, own in zip(labels, measured, strict=True) for row in own[measure]
            ]
            for measure in MEASURES
        }
        judged = evaluator.judge(cells, JsonlCache.read(folder / "verdicts.jsonl", CachedVerdict), listener)
        results = evaluator.results(judged, rows, command)
        evaluation = Evaluation.model_validate(results)
        private = first.show_responses
        write_json(folder / "evaluation.json", results, private=private)
        write_text(folder / "evaluation.md", evaluation_markdown(evaluation, command), private=private)
    return evaluation


def is_single_run(names: Sequence[str], out: Path | None) -> bool:
    """Whether the evaluation is the stage of one run."""
    return len(names) == 1 and is_run(names[0]) and out is None


def is_run(name: str) -> bool:
    """Whether a folder of this name holds a run; errors as `exists`."""
    # A file has no files in it, and the name of a model can be longer than that of a file.
    folder = RunFolder(Path(name))
    return os.path.isdir(name) and (exists(folder.record_file) or folder.lost_record)


def is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def settings_of(name: str, given: Mapping[str, Any]) -> Settings:
    """The settings under which a target is evaluated.

    Raises:
        SafetyNeuronsError: a value is not allowed, or the folder holds a run of another version.
    """
    if is_run(name):
        return merged_settings(RunFolder(Path(name)).whole_record().settings, given)
    return merged_settings({}, given if is_address(name) else {**given, "model": name})


def check_target(name: str, given: Mapping[str, Any], listener: Listener) -> None:
    """Say at once that there is no such model; what is behind an address is only known when it is asked.

    Raises:
        SafetyNeuronsError: no run and no model is called so, or another model is named besides.
    """
    if "model" in given and not is_run(name):
        raise SafetyNeuronsError(
            f"The setting model is for runs, and {name} is evaluated as it is. Omit model, and name each model to "
            "evaluate "
            "as a target."
        )
    if not is_address(name):
        settings = settings_of(name, given)
        locate(settings.model, listener, settings.adapter)


def _stage_for(settings: Settings) -> str:
    """How far a run has to come before the defenses can be evaluated on it."""
    needed = {one.partition(":")[0] for one in settings.evaluate.defenses}
    return "tune" if TUNED & needed else "find"


def _tell_outside(
    names: Sequence[str], settings: Sequence[Settings], given: Mapping[str, Any], listener: Listener
) -> None:
    """Say of each run what its record names outside of its folder; all are evaluated with the first one's options."""
    for number, (name, own) in enumerate(zip(names, settings, strict=True)):
        if is_run(name):
            uses = {*needed_for(_stage_for(settings[0]), own), *(() if number else ("evaluate",))}
            stored = RunFolder(Path(name)).whole_record().settings
            tell_outside(Path(name), stored, given, own, uses, listener)


@contextmanager
def _open_target(
    name: str,
    given: Mapping[str, Any],
    evaluator: Evaluator,
    responses: JsonlCache[CachedAnswer],
    folder: Path,
    served_model: str | None,
    listener: Listener,
    command: str,
) -> Iterator[EvaluationContext]:
    """A target ready to be asked; a run is first brought as far as the defenses need it.

    Raises:
        SafetyNeuronsError: it cannot be read or reached.
    """
    settings = evaluator.settings
    if is_address(name):
        from safety_neurons.engines.endpoint import Endpoint

        endpoint = Endpoint(
            name,
            served_model,
            system=settings.system,
            template_options=template_options(settings) or {},
            reasoning_tokens=settings.reasoning_tokens,
        )
        engine = CachedEngine(endpoint, responses)
        yield evaluator.context(engine, RunArtifacts(), folder, listener)
    elif is_run(name):
        until = _stage_for(settings)
        # The options are those of this evaluation: the run keeps its own.
        own = {section: values for section, values in given.items() if section != "evaluate"}
        with opened(Path(name), own, listener, command, until=until, alone=False, is_told=True) as context:
            engine = engine_of(context.model, settings, responses)
            artifacts = artifacts_of(context, settings.evaluate.defenses)
            yield evaluator.context(engine, artifacts, folder, listener)
    else:
        with listener.task(f"loading {settings.model}", 1) as advance:
            model = load_model(settings)
            model.render("Hello")
            advance(1)
        yield evaluator.context(engine_of(model, settings, responses), RunArtifacts(), folder, listener)
