"""Jailbreak prompts from a user's file, written by hand or by a method that is not implemented here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.evaluation.contracts import Attack, Defended, EvaluationContext
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.prompts.prompt_set import is_missing, normalized, places
from safety_neurons.prompts.read import listed, read_table, requests_of
from safety_neurons.prompts.table import PromptRow, counted

# What is sent for a request without a prompt: nothing, or the request itself.
Missing = Literal["skip", "request"]


@dataclass(frozen=True)
class AttackFile:
    """Jailbreak prompts by normalized goal (the request); the first where a goal has several.

    `remarks` are phrases on what was found out or left out when the file was read.
    """

    prompts: dict[str, AttackedPrompt]
    remarks: tuple[str, ...] = ()


def read_attack(path: Path, goal_column: str = "goal", prompt_column: str = "prompt") -> AttackFile:
    """The jailbreak prompts of a file. A goal without a prompt is one that the attack gave up on.

    Raises:
        SafetyNeuronsError: the file is missing or unreadable, lacks a column, has no prompts, or a row has no goal.
    """
    table = read_table(path, str(path))
    columns = {name: table.find(name) for name in (goal_column, prompt_column)}
    if missing := [name for name, column in columns.items() if column is None]:
        raise SafetyNeuronsError(
            f"{path} has no column {missing[0]!r}. Its columns are {listed(table.columns)}; name those of the goals "
            "and of the prompts with goal_column= and prompt_column=."
        )
    found = by_goal(table.rows, str(path), table.unit, str(columns[goal_column]), str(columns[prompt_column]))
    return AttackFile(found.prompts, (*table.notes, *found.remarks))


def by_goal(
    rows: Sequence[PromptRow], source: str, unit: str, goal_column: str = "goal", prompt_column: str = "prompt"
) -> AttackFile:
    """The jailbreak prompts of rows.

    Raises:
        SafetyNeuronsError: a row has no goal, a value is not text, or no row has a prompt.
    """
    goals, requests = (requests_of(rows, column, unit, source) for column in (goal_column, prompt_column))
    blank = [row.place for row, goal in zip(rows, goals.texts, strict=True) if is_missing(goal)]
    if blank:
        raise SafetyNeuronsError(
            f"There is no goal in {source}, in {places(unit, blank)}. Write it, or delete the {unit}."
        )
    prompts: dict[str, AttackedPrompt] = {}
    without = 0
    for goal, prompt in zip(goals.texts, requests.texts, strict=True):
        if is_missing(prompt):
            without += 1
        else:
            prompts.setdefault(normalized(goal), AttackedPrompt(prompt))
    if not prompts:
        raise SafetyNeuronsError(
            f"There are no prompts in {source}: its column {prompt_column!r} is empty. Fill it in."
        )
    gaps = [f"{counted(without, 'goal')} without a prompt"] if without else []
    turns = ["the user's first turn of each conversation"] if requests.turns or goals.turns else []
    return AttackFile(prompts, (*turns, *goals.notes, *requests.notes, *gaps))


def matched(
    requests: Sequence[str], file: AttackFile, source: str, context: EvaluationContext, missing: Missing = "skip"
) -> list[AttackedPrompt | None]:
    """The prompt of each request; where it has none, None or the plain request. Says once how the file was read.

    Raises:
        CannotRunError: no request has a prompt.
    """
    sent = [file.prompts.get(normalized(request)) for request in requests]
    remarks = list(file.remarks)
    if missing == "request" and (plain := sent.count(None)):
        remarks.append(f"{counted(plain, 'request')} without a prompt sent as they are")
    if remarks:
        context.tell(f"{source}: {'; '.join(remarks)}.")
    if not any(sent):
        raise CannotRunError(
            f"None of the {len(file.prompts)} goals of {source} is among the {len(requests)} requests: they belong to "
            "another prompt set."
        )
    if missing == "request":
        return [prompt or AttackedPrompt(request) for prompt, request in zip(sent, requests, strict=True)]
    return sent


@dataclass(frozen=True, kw_only=True)
class FromFile(Attack):
    """Sends the prompt beside the request in `path` (.jsonl, .csv, .tsv or .json).

    A request without one is skipped, also one whose prompt is blank or null, as the attack gave up on it; or sent as
    it is with `missing=request`.
    """

    path: Path | None = None
    goal_column: str = "goal"
    prompt_column: str = "prompt"
    missing: Missing = "skip"

    def prompts(
        self, requests: Sequence[str], defended: Defended, context: EvaluationContext
    ) -> Sequence[AttackedPrompt | None]:
        if self.path is None:
            raise CannotRunError(f"The attack {self.name} needs a file with goals and prompts: file:path=FILE.")
        file = read_attack(Path(os.path.expanduser(self.path)), self.goal_column, self.prompt_column)
        return matched(requests, file, str(self.path), context, self.missing)


ATTACK = FromFile(
    name="file",
    source="the user's file",
    description="Sends the prompt that a file has for the request.",
    budget="one prompt a request, made beforehand",
)
