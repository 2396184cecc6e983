"""What a training goes on from after a kill: one file, safetensors with a JSON header, replaced atomically."""

import dataclasses
import itertools
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from transformers import TrainerState

from safety_neurons.core.distributed import all_gather, broadcast, owns, sync_errors
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, exists
from safety_neurons.core.records import Record
from safety_neurons.core.temporary import remove, remove_abandoned
from safety_neurons.core.tensors import StoredTensors, write_tensors

# What can be done about a checkpoint that cannot be used.
DELETE = "Delete it: training then starts anew."
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_Word = Annotated[int, Field(ge=0, lt=1 << 32)]


@dataclass(frozen=True)
class TrainerProgress:
    """The part of transformers' `TrainerState` that a training depends on, under its names."""

    epoch: float
    global_step: _Count
    max_steps: _Count
    logging_steps: int | float
    eval_steps: int | float
    save_steps: int | float
    train_batch_size: int | None
    num_train_epochs: _Count
    num_input_tokens_seen: _Count
    total_flos: float
    log_history: list[dict[str, int | float]]

    @classmethod
    def of(cls, state: TrainerState) -> Self:
        return cls(**{field.name: getattr(state, field.name) for field in dataclasses.fields(cls)})

    def whole(self) -> dict[str, Any]:
        """The content of the trainer's own file."""
        return dataclasses.asdict(TrainerState()) | dataclasses.asdict(self)


@dataclass(frozen=True)
class ScheduleProgress:
    """How far the schedule of the learning rate is, and the rates of the groups of parameters."""

    last_epoch: _Count
    step_count: _Count
    learning_rates: list[float]


@dataclass(frozen=True)
class RandomStates:
    """The states of the random numbers of Python and NumPy, as their `getstate` and `get_state` return them."""

    python_version: Literal[3]
    python_words: Annotated[list[_Word], Field(min_length=625, max_length=625)]
    python_gauss: float | None
    numpy_words: Annotated[list[_Word], Field(min_length=624, max_length=624)]
    numpy_position: Annotated[int, Field(ge=0, le=624)]
    numpy_has_gauss: Literal[0, 1]
    numpy_gauss: float


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds besides tensors."""

    trainer: TrainerProgress
    schedule: ScheduleProgress
    random: RandomStates


class CheckpointRecord(Record):
    """What a checkpoint's file says besides its tensors."""

    fingerprint: str
    state: TrainingState


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the rest of a training depends on.

    `tensors` are the deltas, those after each finished pass over the corpus, AdamW's moments and the states of torch's
    random numbers.
    """

    fingerprint: str
    tensors: Mapping[str, Tensor]
    state: TrainingState

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names have this prefix, without it."""
        return {
            name.removeprefix(f"{prefix}."): value
            for name, value in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }

    @property
    def passes(self) -> list[dict[str, Tensor]]:
        """The deltas after each finished pass over the corpus."""
        return [self.part(_pass(number)) for number in range(_pass_count(self.tensors))]

    @property
    def is_finished(self) -> bool:
        """Whether the training has no more steps."""
        return self.state.trainer.global_step == self.state.trainer.max_steps

    def save(self, path: Path) -> None:
        """Replace the file atomically."""
        write_tensors(
            path, "checkpoint", self.tensors, CheckpointRecord(fingerprint=self.fingerprint, state=self.state)
        )

    @classmethod
    def load(cls, path: Path, fingerprint: str, parameters: Mapping[str, Tensor]) -> Self | None:
        """Read what `save` wrote; None if it is of another training than the one with this fingerprint.

        Args:
            parameters: those that are trained, of which only types and shapes matter here.

        Raises:
            SafetyNeuronsError: the file is missing, damaged, or not a checkpoint of a training of these parameters.
        """
        stored = StoredTensors.read(path, "checkpoint", DELETE)
        about = stored.about(CheckpointRecord)
        if about.fingerprint != fingerprint:
            return None
        shapes = {"random.cpu": torch.get_rng_state()}
        if "random.cuda" in stored.tensors:
            # Of a training on a GPU, which may not be here.
            shapes["random.cuda"] = (
                torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(16, dtype=torch.uint8)
            )
        shapes |= named("delta", parameters)
        for number in range(_pass_count(stored.tensors)):
            shapes |= named(_pass(number), parameters)
        for name, value in parameters.items():
            moments = dict.fromkeys(("exp_avg", "exp_avg_sq"), value) | {"step": torch.zeros(())}
            if any(f"optimizer.{name}.{moment}" in stored.tensors for moment in moments):
                shapes |= named(f"optimizer.{name}", moments)
        stored.check_names(shapes)
        return cls(
            about.fingerprint,
            {name: stored.get(name, value.dtype, tuple(value.shape)) for name, value in shapes.items()},
            about.state,
        )


def named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that `Checkpoint.part` reads."""
    return {f"{part}.{name}": value for name, value in tensors.items()}


def passes_of(deltas: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The deltas after each pass under the names that `Checkpoint.passes` reads."""
    return {name: value for number, one in enumerate(deltas) for name, value in named(_pass(number), one).items()}


def _pass(number: int) -> str:
    return f"pass{number}"


def _pass_count(names: Collection[str]) -> int:
    parts = {name.partition(".")[0] for name in names}
    return next(number for number in itertools.count() if _pass(number) not in parts)


def resumable(path: Path | None, fingerprint: str, parameters: Mapping[str, Tensor]) -> Checkpoint | None:
    """The checkpoint at this path if it is of the same training of these parameters; process 0 reads it for all.

    Raises:
        SafetyNeuronsError: the file is damaged or not a checkpoint, or the processes would train different things.
    """
    if len(set(all_gather(fingerprint, str))) > 1:
        raise SafetyNeuronsError(
            "The processes have different models, neurons, corpora or training options. Start all with the same."
        )
    checkpoint = None
    with sync_errors():
        if path is not None and owns(0) and exists(path):
            checkpoint = Checkpoint.load(path, fingerprint, parameters)
            if checkpoint is None:
                warnings.warn(
                    f"{path} is of a training with another model, corpus, neurons or options. Training starts anew.",
                    stacklevel=3,
                )
    return broadcast(checkpoint, Checkpoint | None)


def discard(path: Path) -> None:
    """Remove the checkpoint, and temporary files of a process that was killed while writing one."""
    with disk_errors(path):
        remove_abandoned(path.parent, path.name)
        remove(path)
