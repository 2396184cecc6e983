"""Matrices that bitsandbytes keeps in 8 bits (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339)."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def is_8bit(module: nn.Module) -> bool:
    """Whether this is such a matrix."""
    return type(getattr(module, "weight", None)).__name__ == "Int8Params"


def dequantized(module: Any) -> Tensor:
    """The float32 weight [outputs, inputs] that an 8-bit matrix stands for."""
    # Imported late: it takes long, and few models need it.
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    return dequantize_bnb_weight(module.weight, module.state).float()


@contextlib.contextmanager
def without_rounding(module: nn.Module) -> Iterator[None]:
    """8-bit matrices within a module do not round their inputs while the context is open.

    Otherwise they round each token's input to 8 bits, but for the columns in which any token has a large value: which
    these are, and so every token's rounding, depends on the other tokens, and would look like attention to them.
    """
    with contextlib.ExitStack() as stack:
        for matrix in module.modules():
            if is_8bit(matrix):
                stack.callback(matrix.register_forward_hook(_Exact()).remove)
        yield


class _Exact:
    """The hook of one matrix: computes its result again, with the weight in the precision of what is given."""

    weight: Tensor | None = None

    def __call__(self, module: Any, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        given = args[0]
        if self.weight is None:
            self.weight = dequantized(module).to(given.dtype)
        bias = None if module.bias is None else module.bias.to(given.dtype)
        return functional.linear(given, self.weight, bias)
