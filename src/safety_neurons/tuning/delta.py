"""The result of tuning: a small delta that is applied to the base, removed again, or merged into it."""

import contextlib
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.records import Record
from safety_neurons.core.tensors import StoredTensors, write_tensors
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.hook_points import fetched
from safety_neurons.neurons.neuron_set import NeuronRecord, NeuronSet
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
# What can be done about a file that cannot be used, where nothing is known of a run.
AGAIN = "Tune again (sn.tune), and save the delta with NeuronDelta.save."
_NAME = re.compile(r"site(?P<point>0|[1-9]\d{0,8})_(?P<part>write|read\d+_weight|read\d+_bias)")


class DeltaRecord(Record):
    """What a delta's file says of it: its neurons, whose provenance names the base, and how that is identified.

    `epoch` is the number of passes over the corpus, and `factor` is what the trained change was multiplied by.
    """

    neurons: NeuronRecord
    identity_is: str
    epoch: int = Field(ge=0)
    factor: float = Field(ge=0)


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
class NeuronDelta:
    """The change of the tuned neurons' weights: float32 tensors, named as in `neuron_deltas.empty_delta`.

    It was trained for `epoch` passes over the corpus, and then multiplied by `factor`. `steps` is the loss curve of the
    training, and `earlier` are the unscaled changes after each pass before the last; neither is saved.
    """

    neurons: NeuronSet
    tensors: DeltaTensors
    epoch: int = 0
    factor: float = 1.0
    steps: tuple[TrainingStep, ...] = ()
    earlier: tuple[DeltaTensors, ...] = ()

    @property
    def digest(self) -> str:
        """Hash of the change."""
        return digest(self.tensors)

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def norm(self) -> float:
        """The L2 norm of the whole change."""
        return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in self.tensors.values()))

    def after(self, epoch: int) -> Self:
        """The change after this pass over the corpus (1 is the first) of the training that made this delta.

        Raises:
            SafetyNeuronsError: the pass is not known. The file of a delta has one only.
        """
        if epoch == self.epoch:
            return self
        first = self.epoch - len(self.earlier)
        if not first <= epoch < self.epoch:
            raise SafetyNeuronsError(
                f"This delta holds the passes {first} to {self.epoch} over the corpus, not {epoch}."
            )
        known = epoch - first
        return replace(self, tensors=self.earlier[known], epoch=epoch, factor=1.0, earlier=self.earlier[:known])

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
        tensors = {name: value * factor for name, value in self.tensors.items()}
        return replace(self, tensors=tensors, factor=self.factor * factor)

    def check_base(self, model: ChatModel) -> None:
        """Raise SafetyNeuronsError if the delta was made for other weights, is incomplete, or holds NaN or inf."""
        made_for = self.neurons.provenance
        if made_for.identity != model.identity:
            raise SafetyNeuronsError(
                f"This delta was made for {made_for.model} ({made_for.identity[:12]}), not for {model.name} "
                f"({model.identity[:12]}). Load that model, or tune this one."
            )
        self.neurons.check_fits(model)
        # Only the shapes matter.
        expected = empty_delta(model, self.neurons, device="meta")
        if missing := sorted(expected.keys() - self.tensors.keys()):
            raise SafetyNeuronsError(
                f"This delta is incomplete: {len(missing)} of its tensors are missing, first {missing[0]}. Tune again."
            )
        for name, value in self.tensors.items():
            if name not in expected or value.shape != expected[name].shape:
                raise SafetyNeuronsError(f"The tensor {name} of this delta does not fit {model.name}. Tune again.")
            if not value.isfinite().all():
                raise SafetyNeuronsError(f"The tensor {name} of this delta holds NaN or inf. Tune again.")

    def save(self, path: Path) -> None:
        """Write the change, the neurons, and the identity of their base, as safetensors."""
        tensors = {f"delta.{name}": value for name, value in self.tensors.items()} | self.neurons.named()
        about = DeltaRecord(neurons=self.neurons.record, identity_is=IDENTITY, epoch=self.epoch, factor=self.factor)
        write_tensors(path, "neuron delta", tensors, about)

    @classmethod
    def load(cls, path: str | Path, *, advice: str = AGAIN) -> Self:
        """Read what `save` wrote.

        Args:
            advice: what can be done about a file that cannot be used; ends the error message.

        Raises:
            SafetyNeuronsError: the file is missing, damaged, or not a delta.
        """
        stored = StoredTensors.read(Path(path), "neuron delta", advice)
        about = stored.about(DeltaRecord)
        neurons = NeuronSet.of(stored, about.neurons)
        changes = {name.removeprefix("delta."): name for name in stored.tensors if name.startswith("delta.")}
        stored.check_names({*neurons.named(), *changes.values()})
        counts = list(map(len, neurons.both))
        tensors = {name: _change(stored, whole, name, counts) for name, whole in changes.items()}
        return cls(neurons, tensors, about.epoch, about.factor)


def _change(stored: StoredTensors, whole: str, name: str, counts: Sequence[int]) -> Tensor:
    """The tensor `name` of a delta, which has a row for each of the neurons of its hook point, `counts` of them."""
    found = _NAME.fullmatch(name)
    if found is None or int(found["point"]) >= len(counts):
        raise stored.problem(f"the tensor {whole} is unknown")
    count = counts[int(found["point"])]
    return stored.get(whole, torch.float32, (count,) if found["part"].endswith("bias") else (count, None))


def _write(part: WeightRows, change: Tensor, undo: contextlib.ExitStack) -> None:
    """Add to rows of a weight; `undo` restores their values."""
    view, rows = part.view, part.rows.to(part.view.device)
    original = view[rows]
    changed = (original.float() + change.to(view.device)).to(view.dtype)
    if not changed.isfinite().all():
        raise SafetyNeuronsError(
            f"The tensor {part.name} of this delta is too large for {view.dtype} weights. Load the model with "
            'dtype="float32", or tune with a lower learning_rate.'
        )
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
