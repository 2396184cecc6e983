"""Notices numbers that are not finite wherever a model computes them first: in every command, and for every caller."""

import functools
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from safety_neurons.core.errors import NotFiniteError

# Models that are checked already.
_checked: WeakSet[nn.Module] = WeakSet()


def check_finite(model: PreTrainedModel, name: str) -> None:
    """Check the hidden states of every forward pass from now on.

    Only those of the last position are read, which is never padding: what is not finite at an earlier one reaches it
    through attention.
    """
    base = model.base_model
    if base not in _checked:
        _checked.add(base)
        base.register_forward_hook(functools.partial(_check, name))


def _check(name: str, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
    hidden = output[0]
    if isinstance(hidden, Tensor) and hidden.is_floating_point() and not torch.isfinite(hidden[:, -1]).all():
        raise NotFiniteError(not_finite(name, hidden.dtype))


def not_finite(name: str, dtype: torch.dtype) -> str:
    """What to do about a model that computes numbers that are not finite in this precision."""
    if dtype == torch.float16:
        largest = torch.finfo(dtype).max
        return (
            f"{name} computes numbers that are not finite (NaN or inf): its activations exceed {largest:.0f}, the "
            'largest number in float16. Load it with dtype "bfloat16" or "float32".'
        )
    return (
        f"{name} computes numbers that are not finite (NaN or inf) in {str(dtype).removeprefix('torch.')}. Its weights "
        "are damaged, or what is added to its activations is too strong (a smaller alpha)."
    )
