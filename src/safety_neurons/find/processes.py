"""Finding with several processes at once, started by torchrun: each reads a share of the prompts."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import Tensor, distributed

T = TypeVar("T")


def process_count() -> int:
    """How many processes work together; 1 where no process group was started."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def my_share(items: Sequence[T]) -> Sequence[T]:
    """Every n-th item, so that no item is read twice."""
    return items if process_count() == 1 else items[distributed.get_rank() :: process_count()]


def add_over_processes(tensors: Iterable[Tensor]) -> None:
    """Add up each tensor over all processes, in place."""
    if process_count() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def max_over_processes(tensors: Iterable[Tensor]) -> None:
    """The largest of each tensor's entries over all processes, in place."""
    if process_count() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
