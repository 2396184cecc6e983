"""Jailbreak prompts from a file of the user's: whatever was made, by hand or by a method that is not in here.

Jailbreak prompts that were made beforehand, each for one request: its goal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.evaluation.contracts import Attack, Defended, EvaluationContext
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.prompts.prompt_set import normalized
from safety_neurons.prompts.read import PromptRow, read_table


def read_attack(path: Path, goal_column: str = "goal", prompt_column: str = "prompt") -> dict[str, AttackedPrompt]:
    """The jailbreak prompts of a file by normalized goal; of several for one goal, the first.

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
    rows: Sequence[PromptRow], source: str, unit: str, goal_column: str = "goal", prompt_column: str = "prompt"
) -> dict[str, AttackedPrompt]:
    """The jailbreak prompts of rows by normalized goal; of several for one goal, the first.

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
        found.setdefault(normalized(goal), AttackedPrompt(prompt))
    return found


def matched(requests: Sequence[str], prompts: dict[str, AttackedPrompt], source: str) -> list[AttackedPrompt | None]:
    """The prompt of each request, None where it has none.

    Raises:
        CannotRun: no request has one.
    """
    found = [prompts.get(normalized(request)) for request in requests]
    if not any(found):
        raise CannotRunError(
            f"None of the {len(prompts)} goals of {source} is among the {len(requests)} requests: they belong to "
            "another prompt set."
        )
    return found


@dataclass(frozen=True, kw_only=True)
class FromFile(Attack):
    """A request is sent as the prompt beside it in `path` (.jsonl, .csv, .tsv or .json); without one, not at all."""

    path: Path | None = None
    goal_column: str = "goal"
    prompt_column: str = "prompt"

    def reads(self, context: EvaluationContext) -> Sequence[Path]:
        return () if self.path is None else (self.path,)

    def prompts(
        self, requests: Sequence[str], defended: Defended, context: EvaluationContext
    ) -> Sequence[AttackedPrompt | None]:
        if self.path is None:
            raise CannotRunError(f"The attack {self.name} needs a file with goals and prompts: file:path=FILE.")
        found = read_attack(self.path.expanduser(), self.goal_column, self.prompt_column)
        return matched(requests, found, str(self.path))


ATTACK = FromFile(
    name="file",
    source="the user's file",
    description="Sends the prompt that a file has for the request.",
    budget="one prompt a request, made beforehand",
)
