"""How large a model can be, read from the headers of its weights: without torch, as a header is read in a moment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import MOST_BYTES_OF_WEIGHTS, open_regular
from safety_neurons.models.hub import GET_AGAIN


@dataclass(frozen=True)
class StoredSizes:
    """What the headers of a model's weights say: tensors, values and bytes in them, and the largest dimension."""

    tensors: int
    values: int
    bytes: int
    largest: int


def stored_sizes(paths: Sequence[Path]) -> StoredSizes:
    """Read the headers of safetensors files.

    Raises:
        SafetyNeuronsError: a file is missing or broken, or has holes instead of weights.
    """
    tensors = values = size = largest = 0
    for path in paths:
        with open_regular(path, GET_AGAIN, MOST_BYTES_OF_WEIGHTS):
            pass
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    shape = file.get_slice(name).get_shape()
                    tensors += 1
                    values += math.prod(shape)
                    largest = max(largest, *shape, 1)
        except (SafetensorError, OSError) as error:
            raise SafetyNeuronsError(f"{path} is broken ({error}). {GET_AGAIN}") from error
        size += path.stat().st_size
    return StoredSizes(tensors, values, size, largest)
