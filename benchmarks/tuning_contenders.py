"""The contenders of benchmarks/tuning.py: how each of them is trained, and the model as each leaves it."""

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from memory import peak_while

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Advance
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.corpus import corpus_of
from safety_neurons.runs.find import score_neurons_of
from safety_neurons.tuning.config import Training
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.lora import TENSORS, train_lora
from safety_neurons.tuning.safetune import tune

METHODS = ("found", "sn-tune", "lora", "full")
WITH_BUDGET = ("found", "sn-tune")


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
    """A tuned model: a context in which the run's model is it, a name for its values, and what it took.

    `artifact` and `peak` are bytes, the latter above what the process took before it trained.
    """

    applied: Callable[[], contextlib.AbstractContextManager[Any]]
    digest: str
    parameters: int
    artifact: int
    seconds_per_step: float
    peak: int


@dataclass(frozen=True)
class Materials:
    """What the contenders train on and choose neurons by."""

    corpus: Corpus
    plain_refusals: Corpus
    found: ScoredNeurons
    removal: ScoredNeurons | None

    @classmethod
    def gather(cls, run: RunContext, sn_tune: bool) -> "Materials":
        """Make the corpus and score the neurons; what SN-Tune needs only where it takes part."""
        # The same refusals, learned for the plain request.
        plain = run.settings.tune.model_copy(update={"variants": 0, "benign": 0, "borderline": 0})
        refusals = [pair for pair in corpus_of(run, plain).pairs if pair.kind == "refusal"] if sn_tune else []
        return cls(
            corpus_of(run),
            Corpus(tuple(refusals)),
            score_neurons_of(run),
            score_neurons_of(run, "removal") if sn_tune else None,
        )

    def neurons(self, run: RunContext, contender: Contender) -> NeuronSet | None:
        """The neurons that are tuned; None for LoRA.

        Raises:
            SafetyNeuronsError: the budget pays for none.
        """
        if contender.method == "lora":
            return None
        if contender.method == "full":
            return every_neuron(self.found.top(1.0))
        assert contender.budget is not None
        if contender.method == "sn-tune":
            assert self.removal is not None
            chosen = self.removal.top(contender.budget)
        else:
            settings = run.settings.find
            chosen = self.found.top(contender.budget, settings.scope, settings.selection)
        if not len(chosen):
            raise SafetyNeuronsError(
                f"{chosen.provenance.score} finds no neurons at {contender.budget:g}%. Leave that budget out, or "
                "choose another find.score."
            )
        return chosen

    def corpus_for(self, contender: Contender) -> Corpus:
        return self.plain_refusals if contender.method == "sn-tune" else self.corpus


def every_neuron(some: NeuronSet) -> NeuronSet:
    """All neurons of the model that a set belongs to."""
    nobody = torch.zeros(0, dtype=torch.long)
    return replace(
        some,
        rejection=tuple(torch.arange(width) for width in some.widths),
        conformity=tuple(nobody for _ in some.widths),
        provenance=replace(some.provenance, score="all", percent=100.0),
    )


def training_of(run: RunContext, contender: Contender, learning_rate: float) -> Training:
    """The run's own settings without what only saves memory: the same for all."""
    plain = {"report_to": (), "accumulate": 1, "gradient_checkpointing": False, "shard": False}
    once = {"epochs": 1} if contender.method == "sn-tune" else {}
    training = Training.of(run.settings.tune, contender.seed)
    return training.override({"learning_rate": learning_rate} | plain | once)


def train(model: ChatModel, neurons: NeuronSet | None, corpus: Corpus, training: Training, advance: Advance) -> Tuned:
    """Tune the neurons, or LoRA's adapters where there are none; the model is left as it was."""
    times = [time.perf_counter()]

    def step(items: int) -> None:
        if items:
            times.append(time.perf_counter())
        advance(items)

    made: list[Tuned] = []

    def run() -> None:
        if neurons is None:
            made.append(_lora(model, corpus, training, step))
        else:
            made.append(_neuron_deltas(model, neurons, corpus, training, step))

    peak = peak_while(run)
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    # The first step waits for what is prepared.
    return replace(made[0], peak=peak, seconds_per_step=statistics.median(steps[1:] or steps))


def _neuron_deltas(model: ChatModel, neurons: NeuronSet, corpus: Corpus, training: Training, advance: Advance) -> Tuned:
    delta = tune(model, neurons, corpus, training, seed=training.seed, advance=advance)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        delta.save(path)
        size = path.stat().st_size
    return Tuned(lambda: delta.apply(model), delta.digest, delta.parameters, size, 0.0, 0)


def _lora(model: ChatModel, corpus: Corpus, training: Training, advance: Advance) -> Tuned:
    adapter = train_lora(model, corpus, training, advance=advance)
    with tempfile.TemporaryDirectory() as folder:
        adapter.save(Path(folder), model)
        size = (Path(folder) / TENSORS).stat().st_size
    return Tuned(lambda: adapter.added(model), adapter.digest, adapter.parameters, size, 0.0, 0)
