"""Finding with several processes at once (torchrun): each reads a share of the prompts, all get the same result.

What is exchanged are sums in float64 and texts, both in the CPU's memory, so a gloo group serves on GPUs, too. As with
every collective operation of torch.distributed, all processes of the group have to call `find`.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import Tensor, distributed

from safety_neurons.core.errors import SafetyNeuronsError

T = TypeVar("T")


def process_count() -> int:
    """How many processes work together; 1 where no process group was started."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def owns(number: int) -> bool:
    """Whether this process does item `number` of a list: every n-th, so that no item is done twice."""
    return process_count() == 1 or number % process_count() == distributed.get_rank()


def add_over_processes(tensors: Iterable[Tensor]) -> None:
    """Add up each tensor over all processes, in place."""
    _over_processes(tensors, distributed.ReduceOp.SUM)


def max_over_processes(tensors: Iterable[Tensor]) -> None:
    """The largest of each tensor's entries over all processes, in place."""
    _over_processes(tensors, distributed.ReduceOp.MAX)


def _over_processes(tensors: Iterable[Tensor], operation: distributed.ReduceOp.RedOpType) -> None:
    if process_count() > 1:
        for tensor in tensors:
            shared = tensor.cuda() if distributed.get_backend() == "nccl" else tensor
            distributed.all_reduce(shared, operation)
            tensor.copy_(shared)


def all_gather(mine: T) -> list[T]:
    """What each process gives, in their order, for all of them."""
    if process_count() == 1:
        return [mine]
    given: list[T | None] = [None] * process_count()
    distributed.all_gather_object(given, mine)
    return given  # type: ignore[return-value]


@contextlib.contextmanager
def sync_errors() -> Iterator[None]:
    """Where one process fails in this context, all fail: otherwise the others would wait for it.

    Raises:
        SafetyNeuronsError: this process failed, or another one.
    """
    own: SafetyNeuronsError | None = None
    try:
        yield
    except SafetyNeuronsError as error:
        own = error
    problems = all_gather(None if own is None else str(own))
    if own is not None:
        raise own
    for number, problem in enumerate(problems):
        if problem is not None:
            raise SafetyNeuronsError(f"Process {number} failed: {problem}")
