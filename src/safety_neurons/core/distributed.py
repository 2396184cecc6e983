"""Several processes, started by torchrun: process 0 owns a run, the others help where it asks them to.

What is exchanged are sums in float64, texts and settings, all in the CPU's memory, so a gloo group serves on GPUs, too.
As with every collective operation of torch.distributed, all processes of the group have to take part.
"""

import contextlib
import datetime
import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, distributed

from safety_neurons.core.errors import SafetyNeuronsError

T = TypeVar("T")
# A process that dies closes its connections, and torchrun then ends the others. This is for one that hangs: longer than
# a download, than the slowest process takes for its share, or than process 0 for what it does alone in between.
TIMEOUT = datetime.timedelta(hours=12)
# These tell torch and transformers that torchrun started a process.
VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")


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


@contextlib.contextmanager
def join_processes() -> Iterator[bool]:
    """Join the processes that torchrun started: true in process 0, whom the others help until it leaves."""
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    try:
        if distributed.get_rank():
            # Process 0 says whatever there is to say.
            warnings.simplefilter("ignore")
            transformers.logging.set_verbosity_error()
            with contextlib.suppress(KeyboardInterrupt):
                _serve()
            yield False
            return
        try:
            yield True
        except (SafetyNeuronsError, SystemExit):
            release_workers()
            raise
        release_workers()
    finally:
        # After any other failure the others notice that the connection is closed.
        if distributed.is_initialized():
            _leave()


def _leave() -> None:
    # What holds the group in a reference cycle, such as a trainer, would abort the process when it ends.
    gc.collect()
    distributed.destroy_process_group()


def release_workers() -> None:
    """Let the other processes end; process 0 goes on like one that was started alone."""
    if process_count() > 1:
        _broadcast(None)
        _leave()
        for name in VARIABLES:
            os.environ.pop(name, None)


def ask_workers(task: Callable[..., None], **inputs: Any) -> None:
    """From process 0: the others call `task(**inputs)`. Returns when they have loaded their models."""
    if process_count() > 1 and distributed.get_rank() == 0:
        _broadcast({"task": task, **inputs})
        with sync_errors():
            pass


def _serve() -> None:
    """Do what process 0 asks for until it releases the workers."""
    while (request := _broadcast(None)) is not None:
        task = request.pop("task")
        # Process 0 learns of the failures of all, and reports them.
        with contextlib.suppress(SafetyNeuronsError):
            task(**request)


def _broadcast(message: dict[str, Any] | None) -> dict[str, Any] | None:
    """Process 0's message, for all processes."""
    messages = [message]
    distributed.broadcast_object_list(messages, src=0)
    return messages[0]
