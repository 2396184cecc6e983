"""What processes send each other: JSON of a declared type and its tensors, as bytes. Nothing is pickled.

A message is the length of its JSON (8 bytes), the JSON, and the tensors as safetensors. Numbers arrive exactly: JSON
holds the shortest text that stands for a float, and tensors are copied byte by byte.
"""

import functools
import json
import secrets
from pathlib import Path
from typing import Any

import pydantic
import safetensors.torch
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.records import first_problem

_LENGTH = 8


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[tuple[Any]]:
    # Dataclasses without a config of their own take that of the tuple around them.
    config = pydantic.ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    return TypeAdapter(tuple[kind], config=config)


def pack(value: Any, kind: Any) -> bytes:
    """The message with a value of type `kind`: JSON types, paths, tensors, dataclasses and pydantic models of them.

    Raises:
        TypeError: the value contains something else.
    """
    tensors: dict[str, Tensor] = {}
    # Unknown to whoever wrote the texts in the value, so that none of them is taken for the name of a tensor.
    mark = secrets.token_hex(8)

    def in_json(found: Any) -> Any:
        if isinstance(found, Path):
            return str(found)
        if not isinstance(found, Tensor):
            raise TypeError(f"Processes send each other JSON and tensors, not {type(found).__name__}.")
        name = f"{mark}.{len(tensors)}"
        # safetensors refuses tensors that share memory.
        tensors[name] = found.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {name: None}

    # Fields that were not set stay so: settings know which of them were.
    plain = _adapter(kind).dump_python((value,), exclude_unset=True, warnings=False)
    # Not by pydantic, which refuses halves of surrogate pairs in keys.
    text = json.dumps(plain, default=in_json).encode()
    return len(text).to_bytes(_LENGTH) + text + safetensors.torch.save(tensors)


def unpack(message: bytes, kind: Any, sender: int) -> Any:
    """The value of a message of `pack`, validated as `kind`; `sender` is the number of the process that sent it.

    Raises:
        SafetyNeuronsError: the message is not whole, or holds something else.
    """
    end = _LENGTH + int.from_bytes(message[:_LENGTH])
    try:
        # Copies are aligned: sums over tensors that are not are rounded differently.
        tensors = {name: value.clone() for name, value in safetensors.torch.load(message[end:]).items()}
        plain = json.loads(
            message[_LENGTH:end],
            object_hook=lambda found: tensors.get(next(iter(found)), found) if len(found) == 1 else found,
        )
        # JSON has no tuples, so that records which are strict otherwise cannot be here.
        return _adapter(kind).validate_python(plain, strict=False)[0]
    except pydantic.ValidationError as error:
        # All begins with the place in the tuple.
        problem = first_problem(error).removeprefix("0").lstrip(".: ")
        raise SafetyNeuronsError(_refused(kind, sender, problem)) from error
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise SafetyNeuronsError(_refused(kind, sender, f"it is damaged ({error})")) from error


def _refused(kind: Any, sender: int, reason: str) -> str:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return (
        f"What process {sender} sent is not a valid {name}: {reason}. Start all processes with the same command and "
        "the same versions of safety-neurons and its packages."
    )
