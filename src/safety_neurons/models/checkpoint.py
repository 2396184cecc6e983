"""Whether a checkpoint holds exactly the weights of its model: none is missing, none is left over."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import listed

# Models write masks as a large negative number (GPT-2: -1e4, GPT-Neo: -1e9).
MASK_VALUE = -1e4


def check_weights(name: str, info: Mapping[str, Any], folder: Path | None = None) -> None:
    """Check what `from_pretrained(..., output_loading_info=True)` says about a model's weights.

    transformers initializes missing weights randomly and ignores others, and only logs it.

    Args:
        folder: the checkpoint's folder, to tell weights that are left over from tables that older versions saved.

    Raises:
        SafetyNeuronsError: the checkpoint lacks a weight, or holds one that the model has no place for.
    """
    missing = sorted(info["missing_keys"])
    # Name, shape in the file, shape in the model.
    mismatched = sorted(entry[0] for entry in info["mismatched_keys"])
    unexpected = sorted(info["unexpected_keys"])
    if unexpected and folder is not None:
        unexpected = sorted(set(unexpected) - _computed(folder, unexpected))
    problems = [
        f"{len(names)} {what} ({listed(names)})"
        for names, what in (
            (missing, "missing"),
            (mismatched, "of another shape"),
            (unexpected, "left over, with no place in the model"),
        )
        if names
    ]
    if problems:
        raise SafetyNeuronsError(
            f"The weights of {name} are incomplete or belong to another model than its config.json describes: "
            f"{'; '.join(problems)}. Get the model again, with all of its files."
        )


def _computed(folder: Path, keys: Collection[str]) -> set[str]:
    """The keys of tensors that are not learned: causal masks, mask values and position ids of older checkpoints."""
    found, wanted = set[str](), set(keys)
    # By each end of a name: comparing all names with all others takes hours for a million of them.
    by_end: dict[str, set[str]] = {}
    for key in keys:
        for end in _ends(key):
            by_end.setdefault(end, set()).add(key)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for stored in file.keys():  # noqa: SIM118
                # transformers may add the prefix of the base model to a name, or remove it.
                same = by_end.get(stored, set()) | wanted.intersection(_ends(stored))
                if same and _is_computed(file.get_tensor(stored)):
                    found |= same
    return found


def _ends(name: str) -> list[str]:
    """A dotted name, and what is left of it without its first parts."""
    parts = name.split(".")
    # Names of modules have some ten parts.
    return [".".join(parts[place:]) for place in range(min(len(parts), 64))]


def _is_computed(value: Tensor) -> bool:
    if value.dim() == 0:
        return bool(value <= MASK_VALUE)
    size = value.shape[-1]
    if value.shape == (1, 1, size, size):
        return torch.equal(value.bool(), torch.ones(size, size).tril().bool()[None, None])
    return not value.is_floating_point() and torch.equal(value.flatten().long(), torch.arange(value.numel()))
