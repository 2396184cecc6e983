"""The evaluation of a run, a model or a server: who is asked what, and what comes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Listener
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.engine import CachedEngine
from safety_neurons.evaluation import attacks, defenses, judges
from safety_neurons.evaluation.config import EvaluationConfig
from safety_neurons.evaluation.contracts import EvaluationContext, Judge, RunArtifacts
from safety_neurons.evaluation.grid import HARMFUL, Cell, JudgedCell, Plan, judge_cells
from safety_neurons.evaluation.judge_errors import JudgeErrors
from safety_neurons.evaluation.judging import CachedVerdict
from safety_neurons.evaluation.measures import MEASURES, check_measures, measures
from safety_neurons.evaluation.summary import SCHEMA, cell_results, errors_of, summarize
from safety_neurons.prompts import Prompt, PromptSet, load_prompts, tell
from safety_neurons.report.record import PROMPT_SETS
from safety_neurons.runs.folder import overridden
from safety_neurons.runs.workers import answer_together
from safety_neurons.settings import Settings

# Options of what an evaluation measures besides verdicts, as they are where it does not.
_VERDICTS_ALONE: dict[str, Any] = {"overhead": 0, "utility": False, "tasks": ()} | dict.fromkeys(
    ("gsm8k", "task_limit", "task_folder", "preference_judge", "preference_endpoint", "questions")
)


@dataclass(frozen=True)
class Requests:
    """What is asked: `harmful` requests are attacked, `safe` ones, by the name of their set, are not.

    `sets` are the whole sets that they were taken from, by name.
    """

    harmful: tuple[Prompt, ...]
    safe: dict[str, tuple[Prompt, ...]]
    sets: dict[str, PromptSet]

    @classmethod
    def read(cls, settings: Settings, learners: Sequence[Settings]) -> "Requests":
        """The test split of the settings' own sets, or the sets of evaluate.on.

        Without what any of the `learners` may learn from: the settings of all targets.

        Raises:
            SafetyNeuronsError: a set cannot be read, or nothing of it is left to ask.
        """
        learned = {
            prompt.text
            for one in learners
            for name in PROMPT_SETS
            for prompt in load_prompts(getattr(one, name), one.column, one.data_dir)
            if prompt.split != "test"
        }

        sets: dict[str, PromptSet] = {}

        def fresh(name: str, split: str | None) -> tuple[Prompt, ...]:
            prompts = sets[name] = load_prompts(name, settings.column, settings.data_dir)
            if split is not None:
                prompts = prompts.split(split)
            left = replace(prompts, prompts=tuple(prompt for prompt in prompts if prompt.text not in learned))
            if not len(left):
                raise SafetyNeuronsError(
                    f"Nothing of {name!r} is left to ask: a run learns from all its prompts. Choose another set."
                )
            return tuple(left.take(settings.evaluate.prompts))

        on = settings.evaluate.on
        if on is None:
            safe = {name: fresh(getattr(settings, name), "test") for name in ("benign", "borderline")}
            return cls(fresh(settings.harmful, "test"), safe, sets)
        names = on.split(":")
        if len(names) < 2 or not all(names):
            raise SafetyNeuronsError(
                f"{on!r} does not name harmful and safe prompt sets: give them as jailbreakbench:alpaca:xstest-safe."
            )
        if len(set(names)) < len(names) or HARMFUL in names[1:]:
            raise SafetyNeuronsError(f"{on!r} names a set twice, or {HARMFUL!r} as a safe one. Name each set once.")
        harmful, *safe_names = names
        return cls(fresh(harmful, None), {name: fresh(name, None) for name in safe_names}, sets)


@dataclass(frozen=True)
class Evaluator:
    """An evaluation that is about to begin: everything that its options name has been found.

    `errors` has each judge's measured errors, None where they are not known; `sets` the prompt sets that are asked.
    """

    settings: Settings
    plan: Plan
    judges: tuple[Judge, ...]
    errors: Mapping[str, JudgeErrors | None]
    sets: Mapping[str, PromptSet]

    @classmethod
    def prepare(cls, settings: Settings, learners: Sequence[Settings] = ()) -> "Evaluator":
        """Find and check everything before any work begins.

        Raises:
            SafetyNeuronsError: an option is wrong, or a file or a prompt set cannot be read.
        """
        config = settings.evaluate
        check_members(config)
        found = tuple(judges.get(name) for name in judge_names(config))
        for judge in found:
            judge.check()
        requests = Requests.read(settings, learners or [settings])
        plan = Plan(
            tuple(attacks.get(name) for name in config.attacks),
            tuple(defenses.get(name) for name in config.defenses),
            requests.harmful,
            requests.safe,
        )
        errors = {one.name: errors_of(one.name, config.judge_errors) for one in found}
        return cls(settings, plan, found, errors, requests.sets)

    @classmethod
    def of_verdicts(cls, settings: Settings, defense: str, **changes: Any) -> "Evaluator":
        """The evaluation of one defense by the first judge, which measures nothing but verdicts; errors as `prepare`.

        Args:
            changes: further options of the evaluation.
        """
        first = judge_names(settings.evaluate)[:1]
        evaluate = {"defenses": (defense,), "judges": first} | _VERDICTS_ALONE | changes
        return cls.prepare(Settings.checked(overridden(settings.model_dump(), {"evaluate": evaluate})))

    def tell(self, listener: Listener) -> None:
        """Say how the files of prompts were read, where there is something to say."""
        tell(self.sets, listener)

    def context(self, engine: CachedEngine, run: RunArtifacts, folder: Path, listener: Listener) -> EvaluationContext:
        """What attacks and defenses work with."""
        settings = self.settings
        return EvaluationContext(
            engine,
            settings.evaluate.answer_tokens,
            settings.seed,
            _training_requests(settings, "harmful"),
            _training_requests(settings, "benign"),
            run,
            folder,
            settings.data_dir,
            listener,
        )

    def answer(self, context: EvaluationContext) -> tuple[list[Cell], dict[str, list[dict[str, Any]]]]:
        """All cells of one model, and the other measures of its defenses."""
        cells: list[Cell] = []
        with context.listener.task(f"{context.engine.name}: cells of the grid", self.plan.cells) as advance:
            for cell in answer_together(self.plan, context, self.settings):
                cells.append(cell)
                advance(1)
        return cells, measures(self.settings.evaluate, context, self.plan.defenses, self.ordinary(context))

    def ordinary(self, context: EvaluationContext) -> list[str]:
        """The requests of the first safe set that fit the model's context."""
        ordinary = [prompt.text for prompt in next(iter(self.plan.safe.values()))]
        if model := context.engine.model:
            unfit = model.too_long([model.render(text) for text in ordinary], context.answer_tokens)
            ordinary = [text for index, text in enumerate(ordinary) if index not in unfit]
        return ordinary

    def judge(self, cells: Sequence[Cell], verdicts: JsonlCache[CachedVerdict], listener: Listener) -> list[JudgedCell]:
        return judge_cells(cells, self.judges, verdicts, listener)

    def results(
        self, judged: Sequence[JudgedCell], measured: Mapping[str, list[dict[str, Any]]], command: str
    ) -> dict[str, Any]:
        """The evaluation as JSON."""
        settings, plan = self.settings, self.plan
        return {
            "schema": SCHEMA,
            "command": command,
            "models": list(dict.fromkeys(one.cell.model for one in judged)),
            "attacks": {one.name: _described(one) for one in plan.attacks},
            "defenses": {one.name: _described(one) for one in plan.defenses},
            "judges": {one.name: _described(one) for one in self.judges},
            "prompts": {
                "name": settings.evaluate.on or settings.harmful,
                "harmful": len(plan.harmful),
                "safe": {name: len(prompts) for name, prompts in plan.safe.items()},
                "remarks": {name: found.remarks for name, found in self.sets.items() if found.remarks},
            },
            "answer_tokens": settings.evaluate.answer_tokens,
            "seed": settings.seed,
            "judge_errors": {name: found.to_json() for name, found in self.errors.items() if found is not None},
            "cells": cell_results(judged, self.errors, settings.seed),
            "summary": summarize(judged, self.errors, settings.seed),
            **{name: measured[name] for name in MEASURES},
        }


def judge_names(config: EvaluationConfig) -> tuple[str, ...]:
    return config.judges or (config.judge,)


def check_members(config: EvaluationConfig) -> None:
    """Raise SafetyNeuronsError where an attack, a defense or a judge does not exist, or an option has no effect."""
    for what, names in (("attacks", config.attacks), ("defenses", config.defenses), ("judges", judge_names(config))):
        if len(set(names)) < len(names):
            raise SafetyNeuronsError(f"evaluate.{what} names one of them twice: {', '.join(names)}. Name each once.")
    for family, names in ((attacks, config.attacks), (defenses, config.defenses), (judges, judge_names(config))):
        for name in names:
            family.get(name)
    judges.rules(config.judge)
    check_measures(config)


def _training_requests(settings: Settings, name: str) -> tuple[str, ...]:
    """For the defenses that learn from some."""
    prompts = load_prompts(getattr(settings, name), settings.column, settings.data_dir)
    return tuple(prompt.text for prompt in prompts.split("train").take(settings.find.prompts))


def _described(member: Any) -> dict[str, Any]:
    about = ("source", "description", "budget", "sees_defended_model")
    return {name: getattr(member, name) for name in about if hasattr(member, name)}
