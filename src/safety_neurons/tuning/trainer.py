"""transformers' trainer with our batches, checkpoints without pickle, and validation while it trains.

Of `Trainer` are overridden the data loader, and the methods that save and load a checkpoint: theirs write pickles.


A training in progress as one file: safetensors with a JSON header, replaced in one step, so it is always whole."""

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

from safety_neurons.core.distributed import all_gather, owns, process_count, sync_errors
from safety_neurons.core.errors import DivergedError, SafetyNeuronsError
from safety_neurons.core.files import atomic_path
from safety_neurons.core.progress import Advance
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import halve_when_full
from safety_neurons.neurons.neuron_set import NeuronSet, read_tensors
from safety_neurons.tuning.batches import Collator, Example
from safety_neurons.tuning.config import Training, Validate, Validation
from safety_neurons.tuning.delta import TrainingStep, ValidationStep
from safety_neurons.tuning.delta_model import DeltaModel
from safety_neurons.tuning.neuron_deltas import DeltaTensors, digest
from safety_neurons.tuning.shard import led_by_process_0


@dataclass(frozen=True)
class Checkpoint:
    """All that the rest of a training depends on.

    `tensors` are the slices, the best slices so far, the moments of AdamW and the states of torch's random numbers;
    `state` is the trainer's, the schedule's and that of the other random numbers, in JSON's types.
    """

    fingerprint: str
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that beginning."""
        return {
            name.removeprefix(f"{prefix}."): value
            for name, value in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }

    def save(self, path: Path) -> None:
        """Replace the file in one step."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        described = json.dumps({"fingerprint": self.fingerprint, "state": self.state})
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"checkpoint": described})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            SafetyNeuronsError: the file is missing, broken, or no checkpoint.
        """
        tensors, metadata = read_tensors(path)
        try:
            described = json.loads(metadata["checkpoint"])
            return cls(described["fingerprint"], tensors, described["state"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise SafetyNeuronsError(f"{path} is not a checkpoint. Choose another file, or delete it.") from error


def named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that `Checkpoint.part` finds them by."""
    return {f"{part}.{name}": value for name, value in tensors.items()}


def resumable(path: Path | None, fingerprint: str) -> Checkpoint | None:
    """The checkpoint at this path where it is of the same training; process 0 reads it for all.

    Raises:
        SafetyNeuronsError: the file is broken or no checkpoint, or the processes are to train different things.
    """
    if len(set(all_gather(fingerprint))) > 1:
        raise SafetyNeuronsError("The processes were given different models, neurons, corpora or options to tune with.")
    found = None
    with sync_errors():
        if path is not None and owns(0) and path.exists():
            found = Checkpoint.load(path)
            if found.fingerprint != fingerprint:
                warnings.warn(
                    f"{path} is of a training with another model, corpus, neurons or options: starting again.",
                    stacklevel=3,
                )
                found = None
    return all_gather(found)[0]


def discard(path: Path) -> None:
    """Remove the checkpoint, and what a process that was killed while it wrote one left behind."""
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink()
    path.unlink(missing_ok=True)


def training_fingerprint(
    model: ChatModel, neurons: NeuronSet, examples: Sequence[Example], training: Training, validated: bool
) -> str:
    """SHA-256 of all that the trained slices follow from, to the bit."""
    options = training.model_dump(exclude={"report_to", "checkpoint_every"})
    parts = {
        "model": [model.identity, str(model.model.dtype), model.device.type],
        "neurons": [layer.tolist() for layer in neurons.both],
        "examples": examples,
        "options": options,
        "validated": validated,
        # Sums over other parts of a batch are rounded in another way.
        "processes": process_count(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def random_tensors() -> dict[str, Tensor]:
    """The states of torch's random numbers."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def random_state() -> dict[str, Any]:
    """The states of Python's and numpy's random numbers."""
    of_numpy = [part.tolist() if isinstance(part, numpy.ndarray) else part for part in numpy.random.get_state()]
    return {"python": random.getstate(), "numpy": of_numpy}


def set_random(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Put back what `random_tensors` and `random_state` gave."""
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy.random.set_state(tuple(state["numpy"]))


class SliceTrainer(Trainer):
    """Trains the slices on this process's share of the batches."""

    def __init__(
        self,
        delta_model: DeltaModel,
        arguments: TrainingArguments,
        training: Training,
        *,
        shares: Sequence[Sequence[Example]],
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
        """All passes as one, and every share as it is: what the trainer would draw depends on the processes."""
        return DataLoader(self.shares, batch_size=1, collate_fn=lambda shares: self.collator(shares[0]))  # type: ignore[arg-type]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.state.epoch = self.state.global_step / self.steps_per_epoch
        super().log(logs, *args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """The step of a micro batch, or of its halves where memory runs out: their losses and gradients add up."""

        def step(rows: list[int]) -> Tensor:
            before = [None if value.grad is None else value.grad.clone() for value in self.delta_model.parameters()]
            try:
                some = {name: value[rows] for name, value in inputs.items()}
                loss: Tensor = super(SliceTrainer, self).training_step(model, some, num_items_in_batch)
                return loss
            except (MemoryError, RuntimeError):
                # The gradients of the last layers may be added already.
                for parameter, gradient in zip(self.delta_model.parameters(), before, strict=True):
                    parameter.grad = gradient
                raise

        rows = list(range(len(inputs["input_ids"])))
        if process_count() > 1:
            # The others would wait for what this process does twice.
            return step(rows)
        return torch.stack(halve_when_full(step, rows)).sum()

    def validate_now(self) -> bool:
        """Measure, keep the slices where they are the best so far, and say whether there is patience left."""
        assert self.validate is not None
        found: Validation | None = None
        join_processes = led_by_process_0(self.delta_model.base) if self.training.shard else contextlib.nullcontext()
        with sync_errors(), torch.no_grad(), self.delta_model.active(), join_processes:
            if owns(0):
                found = self.validate(digest(self.delta_model.tensors()))
        found = all_gather(found)[0]
        assert found is not None
        least = min((seen.harm for seen in self.validations()), default=math.inf)
        self.log(dataclasses.asdict(found))
        if self.validations()[-1].harm <= least:
            self.best = self.delta_model.tensors()
        return self.training.patience is None or self._waited() < self.training.patience

    def _waited(self) -> int:
        """For how many validations nothing has become better."""
        least, waited = math.inf, 0
        for seen in self.validations():
            waited = 0 if seen.harm < least else waited + 1
            least = min(least, seen.harm)
        return waited

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
        tensors = named("slice", self.delta_model.tensors()) | named("best", self.best or {})
        tensors |= named("optimizer", moments) | named("random", random_tensors())
        state = {
            "trainer": dataclasses.asdict(self.state),
            "schedule": self.lr_scheduler.state_dict(),
            "learning_rates": [group["lr"] for group in self.optimizer.param_groups],
            "random": random_state(),
        }
        Checkpoint(self.fingerprint, tensors, state).save(self.checkpoint)

    def _load_from_checkpoint(self, *_args: Any, **_kwargs: Any) -> None:
        assert self.resumed is not None
        slices = self.resumed.part("slice")
        with torch.no_grad():
            for name, parameter in self.delta_model.delta.items():
                parameter.copy_(slices[name])

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
            set_random(self.resumed.part("random"), self.resumed.state["random"])


class _EachStep(TrainerCallback):
    """After every optimizer step: progress, validation, and whether to save."""

    def __init__(self, trainer: SliceTrainer, advance: Advance) -> None:
        self.trainer, self.advance = trainer, advance

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        self.advance(state.global_step)

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.advance(1)
        training, last = self.trainer.training, state.global_step == state.max_steps
        due = last or state.global_step % training.validate_every == 0
        if self.trainer.validate is not None and due and not self.trainer.validate_now():
            control.should_training_stop = True
        # What validation logged is not the loss of this step.
        control.should_log = True
        stops = last or control.should_training_stop
        control.should_save = not stops and state.global_step % training.checkpoint_every == 0

    def on_log(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise DivergedError("Training diverged: the loss is no longer a number. Lower tune.learning-rate.")
