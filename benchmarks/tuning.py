"""What tuning the safety neurons defends and costs, beside random neurons, LoRA, the whole MLP and SN-Tune's recipe.

Run it alone: `python benchmarks/tuning.py OUT --data-dir COPIES` (LoRA needs `pip install peft`). COPIES holds advbench,
jailbreakbench, alpaca and xstest, and in `attacks/` files of jailbreak prompts (.jsonl with goal and prompt).
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from memory import peak_while
from rich.console import Console
from torch import nn
from tune import LORA_RANK, completion_loss, matrices
from tuning_table import markdown

import safety_neurons.attacks as attacks
from safety_neurons.attacks import AttackedPrompt
from safety_neurons.console import ConsoleListener, errors
from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.evaluate.likelihood import divergence, read_answers, surprise
from safety_neurons.find.find import score_neurons
from safety_neurons.models.generate import batches_by_length, padding_token
from safety_neurons.models.presets import DEFAULT_MODEL
from safety_neurons.prompts import Prompt, load_prompts
from safety_neurons.run.answers import Condition
from safety_neurons.run.corpus import corpus_of
from safety_neurons.run.folder import fingerprint
from safety_neurons.run.opened import opened
from safety_neurons.run.validation import Validator
from safety_neurons.run.workplace import Workplace
from safety_neurons.storage import append_line, read_lines
from safety_neurons.tune.batches import Collator, batches, encode
from safety_neurons.tune.corpus import Corpus
from safety_neurons.tune.delta import NeuronDelta
from safety_neurons.tune.safetune import tune
from safety_neurons.tune.training import Training

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
