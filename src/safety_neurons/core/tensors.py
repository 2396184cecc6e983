"""Tensors in safetensors files, with their digest: the one place that writes them and reads them back.

A file may be damaged, or come from somebody else. Shapes and types are checked before a tensor is loaded, and the
digest over everything is checked when the file is opened.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import atomic_path, open_regular
from safety_neurons.core.records import first_problem

# The largest file that is read: a delta of 3% of a model with 70 billion parameters has 6 GB. The file and a copy of
# its tensors must fit into memory.
MOST_BYTES = min(16 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
# The one entry of the metadata: safetensors writes several in arbitrary order.
ENTRY = "safety-neurons"

R = TypeVar("R", bound=BaseModel)


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], about: BaseModel) -> str:
    """Write tensors and what is known about them; returns the digest over both.

    Args:
        kind: what the file holds, such as "neuron delta"; a file of another kind is refused when it is read.

    Raises:
        SafetyNeuronsError: the disk is full or the folder cannot be written.
    """
    whole: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        # safetensors writes no two tensors that share memory.
        whole[name] = value.clone() if place in memory else value
        memory.add(place)
    described = about.model_dump(mode="json")
    digest = digest_of(kind, whole, described)
    entry = json.dumps({"kind": kind, "digest": digest, "about": described}, allow_nan=False)
    with atomic_path(path) as temporary:
        save_file(whole, temporary, {ENTRY: entry})
    return digest


def digest_of(kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, and what is known about them."""
    digest = hashlib.sha256(json.dumps([kind, about], sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class StoredTensors:
    """The content of a file of `write_tensors`; `advice` ends the messages of errors about it."""

    path: Path
    tensors: Mapping[str, Tensor]
    described: Mapping[str, Any]
    digest: str
    advice: str

    @classmethod
    def read(cls, path: Path, kind: str, advice: str, limit: int = MOST_BYTES) -> Self:
        """Open a file and check its digest.

        Args:
            kind: as it was written.
            advice: what the user can do about a file that cannot be used.
            limit: the largest file that is read, in bytes.

        Raises:
            SafetyNeuronsError: the file is missing, unreadable, too large, damaged, or holds something else.
        """
        with open_regular(path, advice, limit):
            pass
        try:
            with safe_open(path, framework="pt") as file:
                metadata = (file.metadata() or {}).get(ENTRY, "")
                mapped = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            # The last three are for types of numbers that this version of PyTorch does not have.
            raise SafetyNeuronsError(f"{path} is damaged ({error}). {advice}") from error
        try:
            entry = json.loads(metadata)
            found, digest, described = (entry[name] for name in ("kind", "digest", "about"))
            computed = digest_of(found, mapped, described)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise SafetyNeuronsError(
                f"{path} is not a {kind} of this version of safety-neurons: its description is missing. {advice}"
            ) from None
        if found != kind:
            raise SafetyNeuronsError(f"{path} is not a {kind}. {advice}")
        if digest != computed:
            raise SafetyNeuronsError(f"{path} is damaged: its content does not match its digest. {advice}")
        # Copies, as tensors within the file are not aligned, and sums over them are rounded differently.
        tensors = {name: value.clone() for name, value in mapped.items()}
        return cls(path, tensors, described, digest, advice)

    def about(self, kind: type[R]) -> R:
        """What is known about the tensors.

        Raises:
            SafetyNeuronsError: a field is missing, unknown or wrong.
        """
        try:
            return kind.model_validate_json(json.dumps(self.described))
        except ValidationError as error:
            raise self.problem(first_problem(error)) from error

    def get(self, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
        """A tensor of this type and shape, in which None stands for any size; its numbers are finite.

        Raises:
            SafetyNeuronsError: there is none, or it is another one.
        """
        if name not in self.tensors:
            raise self.problem(f"the tensor {name} is missing")
        value = self.tensors[name]
        fits = len(value.shape) == len(shape) and all(
            want in (None, have) for have, want in zip(value.shape, shape, strict=True)
        )
        if value.dtype != dtype or not fits:
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.problem(
                f"the tensor {name} is {value.dtype} [{', '.join(map(str, value.shape))}], not {dtype} [{expected}]"
            )
        if value.is_floating_point() and not value.isfinite().all():
            raise self.problem(f"the tensor {name} holds NaN or inf")
        return value

    def indices(self, name: str, width: int) -> Tensor:
        """A tensor of sorted, distinct indices below `width`: int64 [any].

        Raises:
            SafetyNeuronsError: there is none, or it is another one.
        """
        value = self.get(name, torch.int64, (None,))
        if len(value) and (value[0] < 0 or value[-1] >= width or (value.diff() <= 0).any()):
            raise self.problem(f"the tensor {name} does not hold increasing indices from 0 to {width - 1}")
        return value

    def check_names(self, names: Collection[str]) -> None:
        """Raise SafetyNeuronsError where the file has other tensors than these."""
        if unknown := sorted(self.tensors.keys() - set(names)):
            raise self.problem(f"the tensor {unknown[0]} is unknown")

    def problem(self, what: str) -> SafetyNeuronsError:
        """An error about this file."""
        return SafetyNeuronsError(f"{self.path} is damaged: {what}. {self.advice}")
