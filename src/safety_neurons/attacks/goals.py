"""Jailbreak prompts that were made beforehand, each for one request: its goal."""

from collections.abc import Sequence
from pathlib import Path

from safety_neurons.attacks.attack import AttackedPrompt
from safety_neurons.errors import CannotRun, SafetyNeuronsError
from safety_neurons.prompts.formats import Row
from safety_neurons.prompts.prompt_set import normalised
from safety_neurons.prompts.read import read_table


def read_attack(path: Path, goal_column: str = "goal", prompt_column: str = "prompt") -> dict[str, AttackedPrompt]:
    """The jailbreak prompts of a file by normalised goal; of several for one goal, the first.

    Raises:
        SafetyNeuronsError: the file is missing or cannot be read, or lacks a column, or a row has no goal or no prompt.
    """
    table = read_table(path, str(path))
    columns = [table.find(column) for column in (goal_column, prompt_column)]
    for column, found in zip((goal_column, prompt_column), columns, strict=True):
        if found is None:
            raise SafetyNeuronsError(
                f"{path} has no column {column!r}. Its columns are {', '.join(table.columns) or 'none'}; say which "
                "holds the goals and which the prompts with goal_column= and prompt_column=."
            )
    return by_goal(table.rows, str(path), table.unit, str(columns[0]), str(columns[1]))


def by_goal(
    rows: Sequence[Row], source: str, unit: str, goal_column: str = "goal", prompt_column: str = "prompt"
) -> dict[str, AttackedPrompt]:
    """The jailbreak prompts of rows by normalised goal; of several for one goal, the first.

    Raises:
        SafetyNeuronsError: a row has no goal or no prompt.
    """
    found: dict[str, AttackedPrompt] = {}
    for row in rows:
        goal, prompt = row.values.get(goal_column), row.values.get(prompt_column)
        if not isinstance(goal, str) or not isinstance(prompt, str) or not goal.strip() or not prompt.strip():
            raise SafetyNeuronsError(
                f"There is no goal or no prompt in {unit} {row.place} of {source}: both have to be texts. Write them, "
                f"or delete the {unit}."
            )
        found.setdefault(normalised(goal), AttackedPrompt(prompt))
    return found


def matched(requests: Sequence[str], prompts: dict[str, AttackedPrompt], source: str) -> list[AttackedPrompt | None]:
    """The prompt of each request, None where it has none.

    Raises:
        CannotRun: no request has one.
    """
    found = [prompts.get(normalised(request)) for request in requests]
    if not any(found):
        raise CannotRun(
            f"None of the {len(prompts)} goals of {source} is among the {len(requests)} requests: they belong to "
            "another prompt set."
        )
    return found
