"""What a training goes on from after a kill: one file, safetensors with a JSON header, replaced atomically."""

import dataclasses
import itertools
import warnings
from collections.abc import Mapping, Sequence
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
from safety_neurons.core.tensors import MOST_BYTES, StoredTensors, write_tensors

# What can be done about a checkpoint that cannot be used.
DELETE = "Delete it: training then starts anew."
# safetensors neither writes nor reads a larger header.
_MOST_HEADER_BYTES = 100_000_000
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
class CheckpointPlan:
    """What the checkpoints of a training hold.

    `parameters` are those that are trained, of which only types and shapes matter here. `steps` and `steps_per_epoch`
    are optimizer steps.
    """

    parameters: Mapping[str, Tensor]
    steps: int
    steps_per_epoch: int
    keep_passes: bool

    def passes(self, step: int) -> int:
        """The number of earlier passes that are kept after this step. The last pass is the training's result."""
        return min(step, self.steps - 1) // self.steps_per_epoch if self.keep_passes else 0

    @property
    def most_bytes(self) -> int:
        """No checkpoint is larger: it has the parameters, two moments of each, and the earlier passes."""
        size = sum(value.nbytes for value in self.parameters.values())
        return size * (3 + self.passes(self.steps)) + _MOST_HEADER_BYTES


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the rest of a training depends on.

    `tensors` are the deltas, those after each earlier pass over the corpus if these are kept, AdamW's moments and the
    states of torch's random numbers.
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
        """The deltas after each earlier pass over the corpus that was kept."""
        parts = {name.partition(".")[0] for name in self.tensors}
        names = itertools.takewhile(parts.__contains__, map(_pass, itertools.count()))
        return [self.part(name) for name in names]

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
    def load(cls, path: Path, fingerprint: str, plan: CheckpointPlan) -> Self | None:
        """Read what `save` wrote; None if it is of another training than the one with this fingerprint.

        Raises:
            SafetyNeuronsError: the file is missing, damaged, or not a checkpoint that this plan describes.
        """
        # As much as the training writes, which had to fit into memory then.
        stored = StoredTensors.read(path, "checkpoint", DELETE, max(MOST_BYTES, plan.most_bytes))
        about = stored.about(CheckpointRecord)
        if about.fingerprint != fingerprint:
            return None
        progress = about.state.trainer
        if progress.max_steps != plan.steps or not 0 < progress.global_step <= plan.steps:
            raise stored.problem(
                f"it is of step {progress.global_step} of {progress.max_steps}, and this training has {plan.steps}"
            )
        shapes = {"random.cpu": torch.get_rng_state()}
        if "random.cuda" in stored.tensors:
            # Of a training on a GPU, which may not be here.
            shapes["random.cuda"] = (
                torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(16, dtype=torch.uint8)
            )
        shapes |= named("delta", plan.parameters)
        for number in range(plan.passes(progress.global_step)):
            shapes |= named(_pass(number), plan.parameters)
        for name, value in plan.parameters.items():
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


def resumable(path: Path | None, fingerprint: str, plan: CheckpointPlan) -> Checkpoint | None:
    """The checkpoint at this path if it is of the same training; process 0 reads it for all.

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
            checkpoint = Checkpoint.load(path, fingerprint, plan)
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
