"""transformers' trainer with our batches, the deltas of every pass, and checkpoints without pickle.

The trainer's own methods for checkpoints are overridden because they write pickles.
"""

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from safety_neurons.core.distributed import owns, process_count
from safety_neurons.core.errors import DivergedError, SafetyNeuronsError
from safety_neurons.core.progress import Advance
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import halve_when_full
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning.batches import Collator, TokenizedPair
from safety_neurons.tuning.checkpoint import (
    DELETE,
    Checkpoint,
    CheckpointPlan,
    RandomStates,
    ScheduleProgress,
    TrainerProgress,
    TrainingState,
    named,
    passes_of,
)
from safety_neurons.tuning.config import Training
from safety_neurons.tuning.delta import TrainingStep
from safety_neurons.tuning.delta_model import DeltaModel
from safety_neurons.tuning.neuron_deltas import DeltaTensors

DIVERGED = "Training diverged (NaN or inf). Lower learning_rate."


def training_fingerprint(
    model: ChatModel, neurons: NeuronSet, examples: Sequence[TokenizedPair], training: Training
) -> str:
    """SHA-256 of all that the trained slices follow from, to the bit."""
    options = training.model_dump(exclude={"report_to", "checkpoint_every"})
    parts = {
        "model": [model.identity, str(model.model.dtype), model.device.type],
        "neurons": [layer.tolist() for layer in neurons.both],
        "examples": examples,
        "options": options,
        # Another split of a batch rounds its sums differently.
        "processes": process_count(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def random_states() -> tuple[dict[str, Tensor], RandomStates]:
    """The states of torch's random numbers, and those of Python's and NumPy's."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    version, words, gauss = random.getstate()
    own: Any = numpy.random.get_state(legacy=False)
    words_of_numpy, position = own["state"]["key"].tolist(), int(own["state"]["pos"])
    known = (words_of_numpy, position, own["has_gauss"], own["gauss"])
    return tensors, RandomStates(version, list(words), gauss, *known)


def set_random_states(tensors: Mapping[str, Tensor], state: RandomStates) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    random.setstate((state.python_version, tuple(state.python_words), state.python_gauss))
    words = numpy.array(state.numpy_words, dtype=numpy.uint32)
    numpy.random.set_state(("MT19937", words, state.numpy_position, state.numpy_has_gauss, state.numpy_gauss))


class DeltaTrainer(Trainer):
    """Trains the deltas on this process's share of the batches."""

    def __init__(
        self,
        delta_model: DeltaModel,
        arguments: TrainingArguments,
        training: Training,
        *,
        shares: Sequence[Sequence[TokenizedPair]],
        plan: CheckpointPlan,
        padding: int,
        fingerprint: str,
        checkpoint: Path | None,
        resumed: Checkpoint | None,
        advance: Advance,
    ) -> None:
        self.delta_model, self.training = delta_model, training
        self.shares, self.plan, self.collator = shares, plan, Collator(padding)
        self.fingerprint, self.checkpoint, self.resumed = fingerprint, checkpoint, resumed
        # After each earlier pass over the corpus, where the plan keeps them.
        self.passes: list[DeltaTensors] = [] if resumed is None else resumed.passes
        super().__init__(delta_model, arguments, train_dataset=shares, callbacks=[_EachStep(self, advance)])

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All passes as one, with our shares: the trainer's own sampling depends on the number of processes."""
        return DataLoader(self.shares, batch_size=1, collate_fn=lambda shares: self.collator(shares[0]))  # type: ignore[arg-type]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.state.epoch = self.state.global_step / self.plan.steps_per_epoch
        super().log(logs, *args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """The step of a micro batch, in halves if memory runs out: their losses and gradients add up."""

        def step(rows: list[int]) -> Tensor:
            before = [None if value.grad is None else value.grad.clone() for value in self.delta_model.parameters()]
            try:
                some = {name: value[rows] for name, value in inputs.items()}
                loss: Tensor = super(DeltaTrainer, self).training_step(model, some, num_items_in_batch)
                return loss
            except (MemoryError, RuntimeError):
                # The gradients of the last layers may have been added already.
                for parameter, gradient in zip(self.delta_model.parameters(), before, strict=True):
                    parameter.grad = gradient
                raise

        rows = list(range(len(inputs["input_ids"])))
        if process_count() > 1:
            # Splitting would leave the other processes waiting.
            return step(rows)
        return torch.stack(halve_when_full(step, rows)).sum()

    def steps(self) -> tuple[TrainingStep, ...]:
        return tuple(
            TrainingStep(log["step"], float(log["epoch"]), float(log["loss"]))
            for log in self.state.log_history
            if "loss" in log
        )

    def _save_checkpoint(self, *_args: Any, **_kwargs: Any) -> None:
        if self.checkpoint is None or not owns(0):
            return
        names, saved = self._names(), self.optimizer.state_dict()
        moments = {
            f"{names[number]}.{moment}": value
            for number, values in saved["state"].items()
            for moment, value in values.items()
        }
        tensors = named("delta", self.delta_model.tensors()) | passes_of(self.passes)
        random_tensors, random_state = random_states()
        tensors |= named("optimizer", moments) | named("random", random_tensors)
        schedule = self.lr_scheduler.state_dict()
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        state = TrainingState(
            TrainerProgress.of(self.state),
            ScheduleProgress(schedule["last_epoch"], schedule["_step_count"], rates),
            random_state,
        )
        Checkpoint(self.fingerprint, tensors, state).save(self.checkpoint)

    def _names(self) -> list[str]:
        """The parameters' names in the order of the optimizer."""
        names = {id(value): name for name, value in self.delta_model.delta.items()}
        return [names[id(value)] for group in self.optimizer.param_groups for value in group["params"]]

    def restore(self) -> None:
        """Take over a finished training from the checkpoint that is resumed."""
        assert self.resumed is not None
        self._load_from_checkpoint()
        self.state = TrainerState(**self.resumed.state.trainer.whole())

    def _load_from_checkpoint(self, *_args: Any, **_kwargs: Any) -> None:
        assert self.resumed is not None
        deltas = self.resumed.part("delta")
        with torch.no_grad():
            for name, parameter in self.delta_model.delta.items():
                parameter.copy_(deltas[name])

    def _load_optimizer_and_scheduler(self, _checkpoint: str | None) -> None:
        if self.resumed is None:
            return
        numbers = {name: number for number, name in enumerate(self._names())}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in self.resumed.part("optimizer").items():
            name, _, moment = key.rpartition(".")
            moments.setdefault(numbers[name], {})[moment] = value
        schedule = self.resumed.state.schedule
        groups = self.optimizer.state_dict()["param_groups"]
        if len(groups) != len(schedule.learning_rates):
            raise SafetyNeuronsError(f"{self.checkpoint} is damaged: it has other groups of parameters. {DELETE}")
        for group, rate in zip(groups, schedule.learning_rates, strict=True):
            group["lr"] = rate
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.lr_scheduler.load_state_dict(
            self.lr_scheduler.state_dict()
            | {
                "last_epoch": schedule.last_epoch,
                "_step_count": schedule.step_count,
                "_last_lr": list(schedule.learning_rates),
            }
        )

    def _load_rng_state(self, _checkpoint: str | None) -> None:
        if self.resumed is not None:
            set_random_states(self.resumed.part("random"), self.resumed.state.random)


class _EachStep(TrainerCallback):
    """After every optimizer step: progress and checkpoints; after every pass: a copy of the deltas."""

    def __init__(self, trainer: DeltaTrainer, advance: Advance) -> None:
        self.trainer, self.advance = trainer, advance

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        self.advance(state.global_step)

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.advance(1)
        step = state.global_step
        if len(self.trainer.passes) < self.trainer.plan.passes(step):
            self.trainer.passes.append(self.trainer.delta_model.tensors())
        # The loss of this step has not been logged yet.
        control.should_log = True
        control.should_save = step == state.max_steps or step % self.trainer.training.checkpoint_every == 0

    def on_log(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise DivergedError(DIVERGED)
