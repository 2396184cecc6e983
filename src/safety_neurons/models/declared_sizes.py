"""Whether the sizes that a config declares can be those of its weights, checked before anything is built.

A config is a few lines from a stranger, and a model of a thousand million layers takes forever to build and fills the
memory. The headers of the weights say how large the model can be.
"""

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.hub import GET_AGAIN
from safety_neurons.models.stored_sizes import StoredSizes

# Numbers of parts, each of which has weights of its own, or a row in one.
_COUNTS = re.compile(
    r".*(layer|block|expert|head|stage|depth|codebook)s?|n_(layer|head)|r|.*rank|.*count", re.IGNORECASE
)
_POSITIONS = re.compile(r".*(position|ctx|context|seq|length).*", re.IGNORECASE)
LARGEST_COUNT, LARGEST_POSITION, LARGEST = 1024, 1 << 27, 1 << 40
# Modules for each tensor of the file, and values that are not in the file: tied weights, and what is computed.
MODULES, VALUES, BYTES = (50, 10_000), (2, 1 << 24), (2, 1 << 28)


class TooLargeError(ValueError):
    """A model is larger than its weights."""


def check_declared(path: Path | str, config: Mapping[str, Any], stored: StoredSizes) -> None:
    """Check the numbers in a config, and in the configs inside it.

    Raises:
        SafetyNeuronsError: it declares more than the weights can hold.
    """
    most = max(stored.tensors, stored.largest, LARGEST_COUNT)
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        key, value = pending.pop()
        name = key.rpartition(".")[2]
        if isinstance(value, Mapping):
            pending += [(f"{key}.{inside}".removeprefix("."), each) for inside, each in value.items()]
        elif isinstance(value, list):
            pending += [(key, each) for each in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            limit = most if _COUNTS.fullmatch(name) else LARGEST_POSITION if _POSITIONS.fullmatch(name) else LARGEST
            if isinstance(value, int) and abs(value) > limit:
                raise SafetyNeuronsError(
                    f"{path} cannot be right: {key} is {value:,}, and its weights are {stored.tensors:,} tensors of "
                    f"{stored.values:,} values. {GET_AGAIN}"
                )


@contextlib.contextmanager
def bounded_build(stored: StoredSizes, *, packed: bool = False, only_meta: bool = True) -> Iterator[None]:
    """Stop the building of a model, in this thread, that is larger than its weights.

    Args:
        packed: the weights are quantized, so that one byte may hold eight values.
        only_meta: count what is built without memory, before weights take its place; otherwise, all new parameters.

    Raises:
        TooLargeError: inside, as soon as it is noticed.
    """
    thread, modules, values, size = threading.get_ident(), 0, 0, 0
    most_modules = MODULES[0] * stored.tensors + MODULES[1]
    most_values = max(VALUES[0] * stored.values, 8 * stored.bytes if packed else 0) + VALUES[1]
    most_bytes = BYTES[0] * stored.bytes + BYTES[1]

    def module_registered(_parent: nn.Module, _name: str, _child: nn.Module | None) -> None:
        nonlocal modules
        modules += threading.get_ident() == thread
        if modules > most_modules:
            raise TooLargeError(f"its config describes more than {most_modules:,} modules, and {_has(stored)}")

    def parameter_registered(_parent: nn.Module, name: str, value: nn.Parameter | None) -> None:
        nonlocal values
        if value is not None and threading.get_ident() == thread and (value.is_meta or not only_meta):
            values += value.numel()
        if values > most_values:
            raise TooLargeError(f"its config describes more than {most_values:,} weights, and {_has(stored)}")

    def buffer_registered(_parent: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal size
        if value is not None and threading.get_ident() == thread and value.is_meta:
            size += value.numel() * value.element_size()
        if size > most_bytes:
            raise TooLargeError(f"its config describes tables ({name}) of more than {most_bytes:,} bytes")

    hooks = (
        register_module_module_registration_hook(module_registered),
        register_module_parameter_registration_hook(parameter_registered),
        register_module_buffer_registration_hook(buffer_registered),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _has(stored: StoredSizes) -> str:
    return f"its files have {stored.tensors:,} tensors of {stored.values:,} values"
