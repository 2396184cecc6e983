"""Jailbreak prompts from a file of the user's: whatever was made, by hand or by a method that is not in here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safety_neurons.attacks.attack import Attack, AttackedPrompt
from safety_neurons.attacks.goals import matched, read_attack
from safety_neurons.defenses.defense import Defended
from safety_neurons.engines.bench import Bench
from safety_neurons.errors import CannotRun


@dataclass(frozen=True, kw_only=True)
class FromFile(Attack):
    """A request is sent as the prompt beside it in `path` (.jsonl, .csv, .tsv or .json); without one, not at all."""

    path: Path | None = None
    goal_column: str = "goal"
    prompt_column: str = "prompt"

    def reads(self, bench: Bench) -> Sequence[Path]:
        return () if self.path is None else (self.path,)

    def prompts(self, requests: Sequence[str], defended: Defended, bench: Bench) -> Sequence[AttackedPrompt | None]:
        if self.path is None:
            raise CannotRun(f"The attack {self.name} needs a file with goals and prompts: file:path=FILE.")
        found = read_attack(self.path.expanduser(), self.goal_column, self.prompt_column)
        return matched(requests, found, str(self.path))


ATTACK = FromFile(
    name="file",
    source="the user's file",
    description="Sends the prompt that a file has for the request.",
    budget="one prompt a request, made beforehand",
)
