"""What tuning changed: a small file that is applied to the base, removed again, or merged into it."""

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
    WeightSlice,
    added_to_hook_point,
    digest,
    empty_delta,
    has_plain_weights,
    trainable_hook_points,
    weight_slices,
)

# What is kept of the base, by which a delta knows it again.
IDENTITY = (
    "the SHA-256 of the GGUF file, also of a preset's; the commit of a model of the hub; otherwise a SHA-256 over the "
    "names and sizes of a folder's files and samples of their bytes, or over samples of every weight in memory"
)


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step: the mean loss of its batch, in nats a token."""

    step: int
    epoch: float
    loss: float


@dataclass(frozen=True, eq=False)
class AppliedDelta:
    """A delta that is in a model. As a context manager it gives the model, and removes the delta at the end."""

    model: ChatModel
    _undo: contextlib.ExitStack

    def remove(self) -> None:
        """Give the model every byte back; once it is removed, removing it again changes nothing.

        Raises:
            SafetyNeuronsError: another delta was applied after this one, and is not removed yet.
        """
        applied = _applied.get(self.model.model, [])
        if self._undo not in applied:
            return
        if applied[-1] is not self._undo:
            raise SafetyNeuronsError(
                "Another delta was applied to this model after the one that is to be removed: remove that one first."
            )
        applied.pop().close()

    def __enter__(self) -> ChatModel:
        return self.model

    def __exit__(self, *_exception: object) -> None:
        self.remove()


# How to undo what is applied to each model, in its order: bytes come back exactly only backwards.
_applied: WeakKeyDictionary[PreTrainedModel, list[contextlib.ExitStack]] = WeakKeyDictionary()


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
    def digest(self) -> str:
        """A name for exactly this change."""
        return digest(self.tensors)

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def apply(self, model: ChatModel) -> AppliedDelta:
        """The model with the change in it, until `remove()` or the end of a `with` block; then every byte is as it was.

        The change is written into the weights. Where they are packed (quantized) or elsewhere (offloaded) it is added
        to what their matrices return instead: the model computes with it, while the write vectors that are read from
        the weights are still the base's.

        Raises:
            SafetyNeuronsError: the delta was made for other weights.
        """
        self.check_base(model)
        with contextlib.ExitStack() as undo, torch.no_grad():
            for prefix, hook_point, indices in trainable_hook_points(model, self.neurons):
                if has_plain_weights(hook_point):
                    for slice_ in weight_slices(prefix, hook_point, indices):
                        _write(slice_, self.tensors[slice_.name][slice_.places], undo)
                else:
                    undo.enter_context(added_to_hook_point(hook_point, prefix, indices, self.tensors))
            applied = AppliedDelta(model, undo.pop_all())
        _applied.setdefault(model.model, []).append(applied._undo)
        return applied

    def scale(self, factor: float) -> Self:
        """The same change `factor` times as large: 0 is the base, 1 is this delta.

        Raises:
            SafetyNeuronsError: the factor is not a finite number, or below 0: that would make a model less safe.
        """
        if not math.isfinite(factor) or factor < 0:
            raise SafetyNeuronsError(
                f"A delta cannot be scaled by {factor}: give a finite number from 0 on, such as 0.5."
            )
        return replace(self, tensors={name: value * factor for name, value in self.tensors.items()})

    def check_base(self, model: ChatModel) -> None:
        """Raises SafetyNeuronsError where the delta was made for other weights, or lacks some of its slices."""
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
        """Write the change, the neurons, and which weights they belong to, as safetensors."""
        tensors = {f"delta.{name}": value.contiguous() for name, value in self.tensors.items()}
        tensors |= {f"rejection.{layer}": value for layer, value in enumerate(self.neurons.rejection)}
        tensors |= {f"conformity.{layer}": value for layer, value in enumerate(self.neurons.conformity)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, self._metadata())

    def _metadata(self) -> dict[str, str]:
        provenance = self.neurons.provenance
        base = {"name": provenance.model, "identity": provenance.identity, "identity_is": IDENTITY}
        # Again one entry: safetensors writes several in any order.
        return {"neurons": json.dumps(json.loads(self.neurons.metadata()["neurons"]) | {"base": base})}

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


def _write(slice_: WeightSlice, change: Tensor, undo: contextlib.ExitStack) -> None:
    """Add to rows of a weight; `undo` will put their values back."""
    view, rows = slice_.view, slice_.rows.to(slice_.view.device)
    original = view[rows]
    changed = (original.float() + change.to(view.device)).to(view.dtype)
    undo.callback(view.index_copy_, 0, rows, original)
    view[rows] = changed


def outside_digest(model: ChatModel, neurons: NeuronSet) -> str:
    """SHA-256 over all weights of the model but the neurons' own: what tuning must leave byte for byte.

    Packed weights count as a whole: a delta is not written into them.
    """
    own: dict[int, list[WeightSlice]] = {}
    for prefix, hook_point, indices in trainable_hook_points(model, neurons):
        for slice_ in weight_slices(prefix, hook_point, indices) if has_plain_weights(hook_point) else ():
            own.setdefault(slice_.view.untyped_storage().data_ptr(), []).append(slice_)
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


def _without(value: Tensor, slices: Sequence[WeightSlice]) -> Tensor:
    """A copy of a weight in which the slices of it are zero; the weight itself where none is of it."""
    first, last = value.data_ptr(), value.data_ptr() + value.numel() * value.element_size()
    inside = [slice_ for slice_ in slices if first <= slice_.view.data_ptr() < last]
    if not inside:
        return value
    copy = value.clone()
    for slice_ in inside:
        view = slice_.view
        offset = view.storage_offset() - value.storage_offset()
        copy.as_strided(view.shape, view.stride(), offset)[slice_.rows.to(copy.device)] = 0
    return copy
