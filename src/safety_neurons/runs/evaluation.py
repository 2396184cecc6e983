"""One evaluation: targets by attacks by defenses by judges, kept in a folder and gone on with where it was stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import JsonlCache, disk_errors, write_json, write_text
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.core.tables import inert, markdown
from safety_neurons.evaluation import attacks as attacks_known
from safety_neurons.evaluation import defenses as defenses_known
from safety_neurons.evaluation import judges as judges_known
from safety_neurons.evaluation.config import EvaluationConfig
from safety_neurons.evaluation.grid import Cell, Plan
from safety_neurons.evaluation.judging import judge_cells
from safety_neurons.evaluation.measures import MEASURES, Extras, measures
from safety_neurons.evaluation.summary import SCHEMA, cell_results, errors_of, summarize
from safety_neurons.evaluation.utility.preferences import BUNDLED
from safety_neurons.report.evaluation_tables import notes, tables
from safety_neurons.runs.folder import RunFolder
from safety_neurons.runs.opened import keep_section
from safety_neurons.runs.shared import answered_together
from safety_neurons.runs.targets import Requests, check_target, is_address, is_run, open_target, settings_of
from safety_neurons.runs.workers import release_workers

OUT = Path("runs/evaluation")


def folder_of(targets: Sequence[str], out: Path | None) -> Path:
    """Where an evaluation is kept: in the run's folder, where one run is evaluated and nothing else is said."""
    if out is not None:
        return out
    return Path(targets[0]) / "evaluation" if len(targets) == 1 and is_run(targets[0]) else OUT


def evaluate(
    targets: Sequence[str],
    given: Mapping[str, Any] | None = None,
    *,
    out: Path | None = None,
    attacks: Sequence[str] | None = None,
    defenses: Sequence[str] | None = None,
    judges: Sequence[str] | None = None,
    on: str | None = None,
    limit: int | None = None,
    served_model: str | None = None,
    judge_errors: Path | None = None,
    extras: Extras | None = None,
    listener: Listener | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Evaluate models and runs; evaluation.json and evaluation.md in the folder hold what comes out.

    What is found of a single run stands on its page, too.

    Args:
        targets: run folders, models (presets, hub ids, folders, files), or addresses of OpenAI-compatible servers.
        given: settings that override the run's own, nested as in `Settings`. Those of `evaluate` say how to evaluate;
            attacks, defenses, judges, on, limit (prompts), judge_errors and extras override them.
        out: where answers, verdicts and results are kept; see `folder_of`.
        served_model: the model's name at the server.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    given, listener = given or {}, listener or Silence()
    if not targets or len(set(targets)) < len(targets):
        raise SafetyNeuronsError("Name at least one run or model to evaluate, and each of them once.")
    settings, *others = (settings_of(target, given) for target in targets)
    config = settings.evaluate
    on, judge_errors, extras = on or config.on, judge_errors or config.judge_errors, extras or _extras(config)
    judges = (config.judges or (config.judge,)) if judges is None else judges
    trials = [attacks_known.get(name) for name in _once(config.attacks if attacks is None else attacks, "attacks")]
    defended = [
        defenses_known.get(name) for name in _once(config.defenses if defenses is None else defenses, "defenses")
    ]
    referees = [judges_known.get(name) for name in _once(judges, "judges")]
    for judge in referees:
        judge.check()
    errors = {one.name: errors_of(one.name, judge_errors) for one in referees}
    if served_model is not None and not any(map(is_address, targets)):
        raise SafetyNeuronsError("--served-model is the model's name at a server: evaluate the server's address.")
    requests = Requests.read(settings, on, limit or config.prompts, [settings, *others])
    plan = Plan(tuple(trials), tuple(defended), requests.harmful, requests.safe)
    for target in targets:
        check_target(target, given, listener)
    folder = folder_of(targets, out)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors(folder), filelock.FileLock(folder / ".lock", timeout=0):
            cells, measured = _answered(targets, given, plan, folder, served_model, extras, listener, command)
            release_workers()
            judged = judge_cells(cells, referees, JsonlCache.read(folder / "verdicts.jsonl"), listener)
            results = {
                "schema": SCHEMA,
                "command": command,
                "models": list(dict.fromkeys(cell.model for cell in cells)),
                "attacks": {one.name: _described(one) for one in trials},
                "defenses": {one.name: _described(one) for one in defended},
                "judges": {one.name: _described(one) for one in referees},
                "prompts": {
                    "name": on or settings.harmful,
                    "harmful": len(requests.harmful),
                    "safe": {name: len(prompts) for name, prompts in requests.safe.items()},
                },
                "answer_tokens": settings.evaluate.answer_tokens,
                "seed": settings.seed,
                "judge_errors": {name: found.to_json() for name, found in errors.items() if found is not None},
                "cells": cell_results(judged, errors, settings.seed),
                "summary": summarize(judged, errors, settings.seed),
                **measured,
            }
            write_json(folder / "evaluation.json", results)
            lines = [f"```\n{command}\n```"] if command else []
            write_text(folder / "evaluation.md", markdown(tables(results), [*lines, *map(inert, notes(results))]))
        if len(targets) == 1 and is_run(targets[0]):
            keep_section(RunFolder(Path(targets[0])), "evaluation", results)
    except filelock.Timeout as error:
        raise SafetyNeuronsError(
            f"Another process is working on {folder}. Wait for it, or choose another folder with --out."
        ) from error
    return results


def _answered(
    targets: Sequence[str],
    given: Mapping[str, Any],
    plan: Plan,
    folder: Path,
    served_model: str | None,
    extras: Extras,
    listener: Listener,
    command: str,
) -> tuple[list[Cell], dict[str, list[dict[str, Any]]]]:
    kept = JsonlCache.read(folder / "generations.jsonl")
    names: list[str] = []
    answered: list[list[Cell]] = []
    made: list[dict[str, list[dict[str, Any]]]] = []
    ordinary = [prompt.text for prompt in next(iter(plan.safe.values()))]
    for target in targets:
        with open_target(
            target,
            given,
            needs=[*(one.name for one in plan.attacks), *(one.name for one in plan.defenses)],
            kept=kept,
            folder=folder,
            served_model=served_model,
            listener=listener,
            command=command,
        ) as context:
            given_before = JsonlCache.read(folder / "answers.jsonl")
            names.append(context.engine.name)
            answered.append([])
            with listener.task(f"{context.engine.name}: cells of the grid", plan.cells) as advance:
                for cell in answered_together(plan, context, given_before, settings_of(target, given)):
                    answered[-1].append(cell)
                    advance(1)
            made.append(measures(extras, context, plan.defenses, ordinary, JsonlCache.read(folder / "measures.jsonl")))
    # Two runs of one model, or the model and its run, are different rows.
    called = [
        name if names.count(name) == 1 else f"{name} ({target})" for name, target in zip(names, targets, strict=True)
    ]
    cells = [replace(cell, model=name) for name, found in zip(called, answered, strict=True) for cell in found]
    measured = {
        measure: [row | {"model": name} for name, found in zip(called, made, strict=True) for row in found[measure]]
        for measure in MEASURES
    }
    return cells, measured


def _extras(config: EvaluationConfig) -> Extras:
    return Extras(
        config.overhead,
        config.utility,
        config.tasks,
        config.task_limit,
        config.task_folder,
        config.preference_judge,
        config.preference_endpoint,
        config.questions or BUNDLED,
    )


def _once(names: Sequence[str], what: str) -> Sequence[str]:
    if not names or len(set(names)) < len(names):
        raise SafetyNeuronsError(f"evaluate.{what} has to name at least one, and each of them once.")
    return names


def _described(member: Any) -> dict[str, Any]:
    about = ("source", "description", "budget", "sees_defended_model")
    return {name: getattr(member, name) for name in about if hasattr(member, name)}
