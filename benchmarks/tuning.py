"""What tuning the safety neurons defends and costs, beside random neurons, LoRA, the whole MLP and SN-Tune's recipe.

Run it alone: `python benchmarks/tuning.py OUT --data-dir COPIES` (LoRA needs `pip install peft`). COPIES holds advbench,
jailbreakbench, alpaca and xstest, and in `attacks/` files of jailbreak prompts (.jsonl with goal and prompt).
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TEMPLATES = ("direct", "prefix-injection", "refusal-suppression", "prefill")
METHODS = ("found", "random", "sn-tune", "lora", "full")
# Over so many tokens of the untouched model's answers to Alpaca divergence and perplexity are taken.
ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Contender:
    """One way to tune: `budget` in percent of the neurons, where it has one."""

    method: str
    budget: float | None
    seed: int

    @property
    def name(self) -> str:
        return self.method if self.budget is None else f"{self.method} {self.budget:g}%"


@dataclass(frozen=True)
class Tuned:
    """A tuned model: a context in which the run's model is it, and what it took."""

    applied: Callable[[], contextlib.AbstractContextManager[Any]]
    parameters: int
    artefact: int
    seconds_per_step: float
    peak: int
