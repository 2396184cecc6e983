"""transformers' trainer with our batches, checkpoints without pickle, and validation while it trains.

Of `Trainer` are overridden the data loader, and the methods that save and load a checkpoint: theirs write pickles.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from safety_neurons.errors import DivergedError
from safety_neurons.find.processes import all_or_none, from_all_processes, is_mine, process_count
from safety_neurons.models.generate import halve_when_full
from safety_neurons.progress import Advance
from safety_neurons.tune.batches import Collator, Example
from safety_neurons.tune.checkpoint import Checkpoint, named, random_state, random_tensors, set_random
from safety_neurons.tune.delta import TrainingStep, ValidationStep
from safety_neurons.tune.shard import led_by_process_0
from safety_neurons.tune.slices import DeltaTensors, digest
from safety_neurons.tune.trainee import SliceTrainee
from safety_neurons.tune.training import Training, Validate, Validation


class SliceTrainer(Trainer):
    """Trains the slices on this process's share of the batches."""

    def __init__(
        self,
        trainee: SliceTrainee,
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
        self.trainee, self.training = trainee, training
        self.shares, self.steps_per_epoch, self.collator = shares, steps_per_epoch, Collator(padding)
        self.fingerprint, self.checkpoint, self.resumed = fingerprint, checkpoint, resumed
        self.validate = validate
        self.best: DeltaTensors | None = None if resumed is None else resumed.part("best") or None
        super().__init__(trainee, arguments, train_dataset=shares, callbacks=[_EachStep(self, advance)])

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All passes as one, and every share as it is: what the trainer would draw depends on the processes."""
        return DataLoader(self.shares, batch_size=1, collate_fn=lambda shares: self.collator(shares[0]))  # type: ignore[arg-type]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.state.epoch = self.state.global_step / self.steps_per_epoch
        super().log(logs, *args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """The step of a micro batch, or of its halves where memory runs out: their losses and gradients add up."""

        def step(rows: list[int]) -> Tensor:
            before = [None if value.grad is None else value.grad.clone() for value in self.trainee.parameters()]
            try:
                some = {name: value[rows] for name, value in inputs.items()}
                loss: Tensor = super(SliceTrainer, self).training_step(model, some, num_items_in_batch)
                return loss
            except (MemoryError, RuntimeError):
                # The gradients of the last layers may be added already.
                for parameter, gradient in zip(self.trainee.parameters(), before, strict=True):
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
        together = led_by_process_0(self.trainee.base) if self.training.shard else contextlib.nullcontext()
        with all_or_none(), torch.no_grad(), self.trainee.active(), together:
            if is_mine(0):
                found = self.validate(digest(self.trainee.tensors()))
        found = from_all_processes(found)[0]
        assert found is not None
        least = min((seen.harm for seen in self.validations()), default=math.inf)
        self.log(dataclasses.asdict(found))
        if self.validations()[-1].harm <= least:
            self.best = self.trainee.tensors()
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
        if self.checkpoint is None or not is_mine(0):
            return
        moments = {
            f"{number}.{name}": value
            for number, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        tensors = named("slice", self.trainee.tensors()) | named("best", self.best or {})
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
            for name, parameter in self.trainee.delta.items():
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
