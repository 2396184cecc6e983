"""A training in progress as one file: safetensors with a JSON header, replaced in one step, so it is always whole."""

import hashlib
import json
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy
import torch
from safetensors.torch import save_file
from torch import Tensor

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find.neuron_set import NeuronSet, read_tensors
from safety_neurons.find.processes import all_or_none, from_all_processes, is_mine, process_count
from safety_neurons.models.chat import ChatModel
from safety_neurons.storage import atomic_path
from safety_neurons.tune.batches import Example
from safety_neurons.tune.training import Training


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
    if len(set(from_all_processes(fingerprint))) > 1:
        raise SafetyNeuronsError("The processes were given different models, neurons, corpora or options to tune with.")
    found = None
    with all_or_none():
        if path is not None and is_mine(0) and path.exists():
            found = Checkpoint.load(path)
            if found.fingerprint != fingerprint:
                warnings.warn(
                    f"{path} is of a training with another model, corpus, neurons or options: starting again.",
                    stacklevel=3,
                )
                found = None
    return from_all_processes(found)[0]


def discard(path: Path) -> None:
    """Remove the checkpoint, and what a process that was killed while it wrote one left behind."""
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink()
    path.unlink(missing_ok=True)


def training_fingerprint(
    model: ChatModel, neurons: NeuronSet, examples: Sequence[Example], training: Training, validated: bool
) -> str:
    """SHA-256 of all that the trained slices follow from, to the bit."""
    options = {name: value for name, value in asdict(training).items() if name not in ("report_to", "checkpoint_every")}
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
