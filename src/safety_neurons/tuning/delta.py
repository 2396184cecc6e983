"""The result of tuning: a small delta that is applied to the base, removed again, or merged into it."""

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import atomic_path, read_tensors
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.hook_points import fetched
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning.neuron_deltas import (
    DeltaTensors,
    WeightRows,
    added_to_hook_point,
    digest,
    empty_delta,
    has_plain_weights,
    trainable_hook_points,
    weight_rows,
)

# How the identity in a delta's file identifies the base.
IDENTITY = (
    "the SHA-256 of the GGUF file, also of a preset's; the commit of a model of the hub; otherwise a SHA-256 over the "
    "names and sizes of a folder's files and samples of their bytes, or over samples of every weight in memory"
)


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step: the mean loss of its batch, in nats per token."""

    step: int
    epoch: float
    loss: float


@dataclass(frozen=True, eq=False)
class AppliedDelta:
    """A delta that is applied to a model. As a context manager it yields the model, and removes the delta."""

    model: ChatModel
    _undo: contextlib.ExitStack

    def remove(self) -> None:
        """Restore every byte of the model. Removing a delta twice has no effect.

        Raises:
            SafetyNeuronsError: another delta was applied after this one and is still applied.
        """
        applied = _applied.get(self.model.model, [])
        if self._undo not in applied:
            return
        if applied[-1] is not self._undo:
            raise SafetyNeuronsError("Another delta was applied to this model after this one. Remove that one first.")
        applied.pop().close()

    def __enter__(self) -> ChatModel:
        return self.model

    def __exit__(self, *_exception: object) -> None:
        self.remove()


# How to undo the deltas of each model, in order: only reverse order restores the exact bytes.
_applied: WeakKeyDictionary[PreTrainedModel, list[contextlib.ExitStack]] = WeakKeyDictionary()


@dataclass(frozen=True)
class ValidationStep:
    """The validation rates, from 0 to 1, after an optimizer step."""

    step: int
    attack_success: float
    over_refusal: float

    @property
    def harm(self) -> float:
        """The sum that the selected deltas minimize."""
        return self.attack_success + self.over_refusal


@dataclass(frozen=True)
class NeuronDelta:
    """The change of the tuned neurons' weights: float32 tensors, named as in `neuron_deltas.empty_delta`.

    `steps` is the loss curve of the training, and `validations` are its validation rates; neither is saved.
    """

    neurons: NeuronSet
    tensors: DeltaTensors
    steps: tuple[TrainingStep, ...] = ()
    validations: tuple[ValidationStep, ...] = ()

    @property
    def digest(self) -> str:
        """Hash of the change."""
        return digest(self.tensors)

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def apply(self, model: ChatModel) -> AppliedDelta:
        """Apply the change to the model until `remove()` or the end of a `with` block, which restore every byte.

        The change is written into the weights. For packed (quantized) or offloaded weights, it is added to the outputs
        of their matrices instead: the model computes with it, but write vectors read from the weights are the base's.

        Raises:
            SafetyNeuronsError: the delta was made for other weights.
        """
        self.check_base(model)
        with contextlib.ExitStack() as undo, torch.no_grad():
            for prefix, hook_point, indices in trainable_hook_points(model, self.neurons):
                if has_plain_weights(hook_point):
                    for part in weight_rows(prefix, hook_point, indices):
                        _write(part, self.tensors[part.name][part.places], undo)
                else:
                    undo.enter_context(added_to_hook_point(hook_point, prefix, indices, self.tensors))
            applied = AppliedDelta(model, undo.pop_all())
        _applied.setdefault(model.model, []).append(applied._undo)
        return applied

    def scale(self, factor: float) -> Self:
        """The change multiplied by `factor`: 0 gives the base, 1 this delta.

        Raises:
            SafetyNeuronsError: the factor is not finite, or below 0, which would make a model less safe.
        """
        if not math.isfinite(factor) or factor < 0:
            raise SafetyNeuronsError(
                f"A delta cannot be scaled by {factor}. Use a finite number of at least 0, such as 0.5."
            )
        return replace(self, tensors={name: value * factor for name, value in self.tensors.items()})

    def check_base(self, model: ChatModel) -> None:
        """Raise SafetyNeuronsError if the delta was made for other weights, or is incomplete."""
        self.neurons.check_fits(model)
        made_for = self.neurons.provenance
        if made_for.identity != model.identity:
            raise SafetyNeuronsError(
                f"This delta was made for {made_for.model} ({made_for.identity[:12]}), not for {model.name} "
                f"({model.identity[:12]}). Load that model, or tune this one."
            )
        if missing := sorted(empty_delta(model, self.neurons).keys() - self.tensors.keys()):
            raise SafetyNeuronsError(
                f"This delta is incomplete: {len(missing)} of its tensors are missing, first {missing[0]}. Tune again."
            )

    def save(self, path: Path) -> None:
        """Write the change, the neurons, and the identity of their base, as safetensors."""
        tensors = {f"delta.{name}": value.contiguous() for name, value in self.tensors.items()}
        tensors |= {f"rejection.{layer}": value for layer, value in enumerate(self.neurons.rejection)}
        tensors |= {f"conformity.{layer}": value for layer, value in enumerate(self.neurons.conformity)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, self._metadata())

    def _metadata(self) -> dict[str, str]:
        provenance = self.neurons.provenance
        base = {"name": provenance.model, "identity": provenance.identity, "identity_is": IDENTITY}
        # A single entry: safetensors writes several in arbitrary order.
        return {"neurons": json.dumps(json.loads(self.neurons.metadata()["neurons"]) | {"base": base})}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            SafetyNeuronsError: the file is missing, broken, or not a delta.
        """
        tensors, metadata = read_tensors(path)
        if "neurons" not in metadata or not any(name.startswith("delta.") for name in tensors):
            raise SafetyNeuronsError(f"{path} is not a neuron delta. Run `tune` again.")
        delta = {name.removeprefix("delta."): value for name, value in tensors.items() if name.startswith("delta.")}
        return cls(NeuronSet.load(path), delta)


def _write(part: WeightRows, change: Tensor, undo: contextlib.ExitStack) -> None:
    """Add to rows of a weight; `undo` restores their values."""
    view, rows = part.view, part.rows.to(part.view.device)
    original = view[rows]
    changed = (original.float() + change.to(view.device)).to(view.dtype)
    undo.callback(view.index_copy_, 0, rows, original)
    view[rows] = changed


def outside_digest(model: ChatModel, neurons: NeuronSet) -> str:
    """SHA-256 over all weights but those of the neurons, which tuning must not change.

    Packed weights are included as a whole: a delta is not written into them.
    """
    own: dict[int, list[WeightRows]] = {}
    for prefix, hook_point, indices in trainable_hook_points(model, neurons):
        for part in weight_rows(prefix, hook_point, indices) if has_plain_weights(hook_point) else ():
            own.setdefault(part.view.untyped_storage().data_ptr(), []).append(part)
    digest = hashlib.sha256()
    for name, _ in model.model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        module = model.model.get_submodule(owner)
        with fetched(module):
            value = module.get_parameter(own_name).detach()
            digest.update(name.encode())
            value = _without(value, own.get(value.untyped_storage().data_ptr(), []))
            digest.update(value.flatten().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _without(value: Tensor, parts: Sequence[WeightRows]) -> Tensor:
    """A copy of a weight with zeros in those of the rows that are its own; the weight itself without any."""
    first, last = value.data_ptr(), value.data_ptr() + value.numel() * value.element_size()
    inside = [(part.view, part.rows) for part in parts if first <= part.view.data_ptr() < last]
    if not inside:
        return value
    copy = value.clone()
    for view, rows in inside:
        offset = view.storage_offset() - value.storage_offset()
        copy.as_strided(view.shape, view.stride(), offset)[rows.to(copy.device)] = 0
    return copy
