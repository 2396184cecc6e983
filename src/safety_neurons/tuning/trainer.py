"""transformers' trainer with our batches, validation during training, and checkpoints without pickle.

A checkpoint is one file, safetensors with a JSON header, and is replaced atomically. The trainer's own methods for
checkpoints are overridden because they write pickles.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from safety_neurons.core.distributed import all_gather, broadcast, owns, process_count, sync_errors
from safety_neurons.core.errors import DivergedError, SafetyNeuronsError
from safety_neurons.core.files import atomic_path, disk_errors, exists, read_tensors
from safety_neurons.core.progress import Advance
from safety_neurons.core.temporary import remove, remove_abandoned
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import halve_when_full
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning.batches import Collator, TokenizedPair
from safety_neurons.tuning.config import Training, Validate, Validation
from safety_neurons.tuning.delta import TrainingStep, ValidationStep
from safety_neurons.tuning.delta_model import DeltaModel
from safety_neurons.tuning.neuron_deltas import DeltaTensors, digest
from safety_neurons.tuning.shard import led_by_process_0

DIVERGED = "Training diverged (NaN or inf). Lower learning_rate."


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the rest of a training depends on.

    `tensors` are the deltas, the best deltas so far, AdamW's moments and the states of torch's random numbers; `state`
    is that of the trainer, of the schedule and of the other random numbers, in JSON types.
    """

    fingerprint: str
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names have this prefix, without it."""
        return {
            name.removeprefix(f"{prefix}."): value
            for name, value in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }

    def save(self, path: Path) -> None:
        """Replace the file atomically."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        described = json.dumps({"fingerprint": self.fingerprint, "state": self.state})
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"checkpoint": described})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            SafetyNeuronsError: the file is missing, broken, or not a checkpoint.
        """
        tensors, metadata = read_tensors(path)
        try:
            described = json.loads(metadata["checkpoint"])
            return cls(described["fingerprint"], tensors, described["state"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise SafetyNeuronsError(f"{path} is not a checkpoint. Choose another file, or delete it.") from error


def named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that `Checkpoint.part` reads."""
    return {f"{part}.{name}": value for name, value in tensors.items()}


def resumable(path: Path | None, fingerprint: str) -> Checkpoint | None:
    """The checkpoint at this path if it is of the same training; process 0 reads it for all.

    Raises:
        SafetyNeuronsError: the file is broken or not a checkpoint, or the processes would train different things.
    """
    if len(set(all_gather(fingerprint, str))) > 1:
        raise SafetyNeuronsError("The processes have different models, neurons, corpora or training options.")
    checkpoint = None
    with sync_errors():
        if path is not None and owns(0) and exists(path):
            checkpoint = Checkpoint.load(path)
            if checkpoint.fingerprint != fingerprint:
                warnings.warn(
                    f"{path} is of a training with another model, corpus, neurons or options. Training starts anew.",
                    stacklevel=3,
                )
                checkpoint = None
    return broadcast(checkpoint, Checkpoint | None)


def discard(path: Path) -> None:
    """Remove the checkpoint, and temporary files of a process that was killed while writing one."""
    with disk_errors(path):
        remove_abandoned(path.parent, path.name)
        remove(path)


def training_fingerprint(
    model: ChatModel, neurons: NeuronSet, examples: Sequence[TokenizedPair], training: Training, validated: bool
) -> str:
    """SHA-256 of all that the trained slices follow from, to the bit."""
    options = training.model_dump(exclude={"report_to", "checkpoint_every"})
    parts = {
        "model": [model.identity, str(model.model.dtype), model.device.type],
        "neurons": [layer.tolist() for layer in neurons.both],
        "examples": examples,
        "options": options,
        "validated": validated,
        # Another split of a batch rounds its sums differently.
        "processes": process_count(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of torch's random numbers, and those of Python's and NumPy's in JSON types."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    arrays = [part.tolist() if isinstance(part, numpy.ndarray) else part for part in numpy.random.get_state()]
    return tensors, {"python": random.getstate(), "numpy": arrays}


def set_random_states(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy.random.set_state(tuple(state["numpy"]))


class DeltaTrainer(Trainer):
    """Trains the deltas on this process's share of the batches."""

    def __init__(
        self,
        delta_model: DeltaModel,
        arguments: TrainingArguments,
        training: Training,
        *,
        shares: Sequence[Sequence[TokenizedPair]],
        steps_per_epoch: int,
        padding: int,
        fingerprint: str,
        validate: Validate | None,
        checkpoint: Path | None,
        resumed: Checkpoint | None,
        advance: Advance,
    ) -> None:
        self.delta_model, self.training = delta_model, training
        self.shares, self.steps_per_epoch, self.collator = shares, steps_per_epoch, Collator(padding)
        self.fingerprint, self.checkpoint, self.resumed = fingerprint, checkpoint, resumed
        self.validate = validate
        self.best: DeltaTensors | None = None if resumed is None else resumed.part("best") or None
        super().__init__(delta_model, arguments, train_dataset=shares, callbacks=[_EachStep(self, advance)])

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All passes as one, with our shares: the trainer's own sampling depends on the number of processes."""
        return DataLoader(self.shares, batch_size=1, collate_fn=lambda shares: self.collator(shares[0]))  # type: ignore[arg-type]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.state.epoch = self.state.global_step / self.steps_per_epoch
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

    def validate_now(self) -> bool:
        """Validate, keep the deltas if they are the best so far, and return whether to go on training."""
        assert self.validate is not None
        measured: Validation | None = None
        led = led_by_process_0(self.delta_model.base) if self.training.shard else contextlib.nullcontext()
        with sync_errors(), torch.no_grad(), self.delta_model.active(), led:
            if owns(0):
                measured = self.validate(digest(self.delta_model.tensors()))
        measured = broadcast(measured, Validation)
        assert measured is not None
        least = min((seen.harm for seen in self.validations()), default=math.inf)
        self.log(dataclasses.asdict(measured))
        if self.validations()[-1].harm <= least:
            self.best = self.delta_model.tensors()
        harms = [seen.harm for seen in self.validations()]
        # The number of validations since the first of the best ones.
        waited = len(harms) - 1 - harms.index(min(harms))
        return self.training.patience is None or waited < self.training.patience

    def validations(self) -> tuple[ValidationStep, ...]:
        return tuple(
            ValidationStep(log["step"], log["attack_success"], log["over_refusal"])
            for log in self.state.log_history
            if "attack_success" in log
        )

    def steps(self) -> tuple[TrainingStep, ...]:
        return tuple(
            TrainingStep(log["step"], float(log["epoch"]), float(log["loss"]))
            for log in self.state.log_history
            if "loss" in log
        )

    def _save_checkpoint(self, *_args: Any, **_kwargs: Any) -> None:
        if self.checkpoint is None or not owns(0):
            return
        moments = {
            f"{number}.{name}": value
            for number, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        tensors = named("delta", self.delta_model.tensors()) | named("best", self.best or {})
        random_tensors, random_state = random_states()
        tensors |= named("optimizer", moments) | named("random", random_tensors)
        state = {
            "trainer": dataclasses.asdict(self.state),
            "schedule": self.lr_scheduler.state_dict(),
            "learning_rates": [group["lr"] for group in self.optimizer.param_groups],
            "random": random_state,
        }
        Checkpoint(self.fingerprint, tensors, state).save(self.checkpoint)

    def _load_from_checkpoint(self, *_args: Any, **_kwargs: Any) -> None:
        assert self.resumed is not None
        deltas = self.resumed.part("delta")
        with torch.no_grad():
            for name, parameter in self.delta_model.delta.items():
                parameter.copy_(deltas[name])

    def _load_optimizer_and_scheduler(self, _checkpoint: str | None) -> None:
        if self.resumed is None:
            return
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in self.resumed.part("optimizer").items():
            number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, self.resumed.state["learning_rates"], strict=True):
            group["lr"] = rate
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.lr_scheduler.load_state_dict(dict(self.resumed.state["schedule"]))

    def _load_rng_state(self, _checkpoint: str | None) -> None:
        if self.resumed is not None:
            set_random_states(self.resumed.part("random"), self.resumed.state["random"])


class _EachStep(TrainerCallback):
    """After every optimizer step: progress, validation, and checkpoints."""

    def __init__(self, trainer: DeltaTrainer, advance: Advance) -> None:
        self.trainer, self.advance = trainer, advance

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        self.advance(state.global_step)

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.advance(1)
        training, last = self.trainer.training, state.global_step == state.max_steps
        due = last or state.global_step % training.validate_every == 0
        if self.trainer.validate is not None and due and not self.trainer.validate_now():
            control.should_training_stop = True
        # The loss of this step has not been logged yet.
        control.should_log = True
        stops = last or control.should_training_stop
        control.should_save = not stops and state.global_step % training.checkpoint_every == 0

    def on_log(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise DivergedError(DIVERGED)
