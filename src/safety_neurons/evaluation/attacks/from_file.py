"""Jailbreak prompts from a user's file, written by hand or by a method that is not implemented here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.evaluation.contracts import Attack, Defended, EvaluationContext
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.prompts.prompt_set import normalized
from safety_neurons.prompts.read import read_table
from safety_neurons.prompts.table import PromptRow


def read_attack(path: Path, goal_column: str = "goal", prompt_column: str = "prompt") -> dict[str, AttackedPrompt]:
    """The jailbreak prompts of a file by normalized goal (the request); the first where a goal has several.

    Raises:
        SafetyNeuronsError: the file is missing or unreadable, or lacks a column, or a row has no goal or no prompt.
    """
    table = read_table(path, str(path))
    columns = {name: table.find(name) for name in (goal_column, prompt_column)}
    if missing := [name for name, column in columns.items() if column is None]:
        raise SafetyNeuronsError(
            f"{path} has no column {missing[0]!r}. Its columns are {', '.join(table.columns) or 'none'}; name those of "
            "the goals and of the prompts with goal_column= and prompt_column=."
        )
    return by_goal(table.rows, str(path), table.unit, str(columns[goal_column]), str(columns[prompt_column]))


def by_goal(
    rows: Sequence[PromptRow], source: str, unit: str, goal_column: str = "goal", prompt_column: str = "prompt"
) -> dict[str, AttackedPrompt]:
    """The jailbreak prompts of rows by normalized goal; the first where a goal has several.

    Raises:
        SafetyNeuronsError: a row has no goal or no prompt.
    """
    prompts: dict[str, AttackedPrompt] = {}
    for row in rows:
        goal, prompt = row.values.get(goal_column), row.values.get(prompt_column)
        if not isinstance(goal, str) or not isinstance(prompt, str) or not goal.strip() or not prompt.strip():
            raise SafetyNeuronsError(
                f"There is no goal or no prompt in {unit} {row.place} of {source}: both must be text. Write them, or "
                f"delete the {unit}."
            )
        prompts.setdefault(normalized(goal), AttackedPrompt(prompt))
    return prompts


def matched(requests: Sequence[str], prompts: dict[str, AttackedPrompt], source: str) -> list[AttackedPrompt | None]:
    """The prompt of each request, None where it has none.

    Raises:
        CannotRunError: no request has a prompt.
    """
    sent = [prompts.get(normalized(request)) for request in requests]
    if not any(sent):
        raise CannotRunError(
            f"None of the {len(prompts)} goals of {source} is among the {len(requests)} requests: they belong to "
            "another prompt set."
        )
    return sent


@dataclass(frozen=True, kw_only=True)
class FromFile(Attack):
    """Sends the prompt beside the request in `path` (.jsonl, .csv, .tsv or .json); skips a request without one."""

    path: Path | None = None
    goal_column: str = "goal"
    prompt_column: str = "prompt"

    def prompts(
        self, requests: Sequence[str], defended: Defended, context: EvaluationContext
    ) -> Sequence[AttackedPrompt | None]:
        if self.path is None:
            raise CannotRunError(f"The attack {self.name} needs a file with goals and prompts: file:path=FILE.")
        prompts = read_attack(self.path.expanduser(), self.goal_column, self.prompt_column)
        return matched(requests, prompts, str(self.path))


ATTACK = FromFile(
    name="file",
    source="the user's file",
    description="Sends the prompt that a file has for the request.",
    budget="one prompt a request, made beforehand",
)
