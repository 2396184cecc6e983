"""What tuning changed: a small file that is applied to the base, removed again, or merged into it."""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find.neuron_set import NeuronSet, read_tensors
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.sites import rows_by_neuron, rows_by_output
from safety_neurons.storage import atomic_path, disk_errors
from safety_neurons.tune.slices import DeltaTensors, empty_delta, trainable_sites


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step: the mean loss of its batch, in nats a token."""

    step: int
    epoch: float
    loss: float


@dataclass(frozen=True)
class ValidationStep:
    """What was measured after an optimizer step, both from 0 to 1."""

    step: int
    attack_success: float
    over_refusal: float

    @property
    def harm(self) -> float:
        """What training keeps the slices with the least of."""
        return self.attack_success + self.over_refusal


@dataclass(frozen=True)
class NeuronDelta:
    """The change of the tuned neurons' weights: float32 tensors, named as in `slices.empty_delta`.

    `steps` is the loss curve of the training that made it, and `validations` what was measured in its course; they
    are not saved with it.
    """

    neurons: NeuronSet
    tensors: DeltaTensors
    steps: tuple[TrainingStep, ...] = ()
    validations: tuple[ValidationStep, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @contextlib.contextmanager
    def apply(self, model: ChatModel) -> Iterator[ChatModel]:
        """The model with the change in its weights while the context is open; then every byte is as it was.

        Raises:
            SafetyNeuronsError: the delta was made for other weights.
        """
        self._check(model)
        saved: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            with torch.no_grad():
                for view, rows, change in self._targets(model):
                    saved.append((view, rows, view[rows].clone()))
                    view[rows] = (saved[-1][2].float() + change.to(view.device)).to(view.dtype)
            yield model
        finally:
            with torch.no_grad():
                # Backwards, so that rows that were changed twice end at their first value.
                for view, rows, original in reversed(saved):
                    view[rows] = original

    def _check(self, model: ChatModel) -> None:
        self.neurons.check_fits(model)
        made_for = self.neurons.provenance
        if made_for.identity != model.identity:
            raise SafetyNeuronsError(
                f"This delta was made for {made_for.model} ({made_for.identity[:12]}), not for {model.name} "
                f"({model.identity[:12]}). Load that model, or tune this one."
            )

    def _targets(self, model: ChatModel) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(view of a weight, rows of the view, change) for every slice."""
        for prefix, site, indices in trainable_sites(model, self.neurons):
            yield rows_by_neuron(site.write).detach(), indices, self.tensors[f"{prefix}_write"]
            for number, read in enumerate(site.reads):
                rows = indices + read.offset
                yield rows_by_output(read.module).detach(), rows, self.tensors[f"{prefix}_read{number}_weight"]
                bias = self.tensors.get(f"{prefix}_read{number}_bias")
                if bias is not None:
                    assert isinstance(read.module.bias, Tensor)
                    yield read.module.bias.detach(), rows, bias

    def merge(self, model: ChatModel, folder: Path) -> Path:
        """Write the changed model as a plain transformers folder that `from_pretrained` loads.

        Raises:
            SafetyNeuronsError: the folder exists, the disk is full, or the delta belongs to other weights.
        """
        if folder.exists():
            raise SafetyNeuronsError(f"{folder} exists already. Choose another folder for the merged model.")
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
            try:
                with self.apply(model):
                    model.model.save_pretrained(temporary)
                model.tokenizer.save_pretrained(temporary)
                temporary.chmod(0o755)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def save(self, path: Path) -> None:
        """Write the change, the neurons and where they come from as safetensors."""
        tensors = {f"delta.{name}": value.contiguous() for name, value in self.tensors.items()}
        tensors |= {f"rejection.{layer}": value for layer, value in enumerate(self.neurons.rejection)}
        tensors |= {f"conformity.{layer}": value for layer, value in enumerate(self.neurons.conformity)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, self.neurons.metadata())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            SafetyNeuronsError: the file is missing, broken, or no delta.
        """
        tensors, metadata = read_tensors(path)
        if "neurons" not in metadata or not any(name.startswith("delta.") for name in tensors):
            raise SafetyNeuronsError(f"{path} is not a neuron delta. Run `tune` again.")
        neurons = NeuronSet.load(path)
        return cls(
            neurons,
            {name.removeprefix("delta."): value for name, value in tensors.items() if name.startswith("delta.")},
        )


def outside_digest(model: ChatModel, neurons: NeuronSet) -> str:
    """SHA-256 over all weights of the model but the neurons' own: what tuning must leave byte for byte."""
    zero = NeuronDelta(neurons, empty_delta(model, neurons))
    masked: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for view, rows, _ in zero._targets(model):
        masked.setdefault(view.data_ptr(), []).append((view, rows))
    digest = hashlib.sha256()
    for name, parameter in model.model.named_parameters():
        digest.update(name.encode())
        value = parameter.detach()
        if targets := masked.get(value.data_ptr()):
            value = value.clone()
            for view, rows in targets:
                copy = value.T if view.shape != value.shape or view.stride() != value.stride() else value
                copy[rows] = 0
        digest.update(value.contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()
