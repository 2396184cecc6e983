"""Several processes, started by torchrun: process 0 owns a run, the others help where it asks them to.

What is exchanged are sums in float64 and messages of JSON and tensors (`core.messages`), never pickles. All of it is in
the CPU's memory, so a gloo group serves on GPUs, too.
As with every collective operation of torch.distributed, all processes of the group have to take part.
"""

import contextlib
import datetime
import gc
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
import transformers
from torch import Tensor, distributed

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.messages import pack, unpack

T = TypeVar("T")
# A process that dies closes its connections, and torchrun then ends the others. This is for one that hangs: longer than
# a download, than the slowest process takes for its share, or than process 0 for what it does alone in between.
TIMEOUT = datetime.timedelta(hours=12)
# These tell torch and transformers that torchrun started a process.
VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")


def environment_number(name: str) -> int:
    """What torchrun sets as this variable.

    Raises:
        SafetyNeuronsError: it is missing, or is not a number.
    """
    value = os.environ.get(name, "")
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        problem = f"is {value!r}" if value else "is missing"
        raise SafetyNeuronsError(
            f"The environment variable {name}, a number that torchrun sets for each of its processes, {problem}. Start "
            f"with torchrun, or unset TORCHELASTIC_RUN_ID, {', '.join(VARIABLES)} to work in one process."
        )
    return int(value)


def _check_environment() -> None:
    rank, size = environment_number("RANK"), environment_number("WORLD_SIZE")
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        environment_number(name)
    if rank >= size or not os.environ.get("MASTER_ADDR"):
        raise SafetyNeuronsError(
            f"This is process {rank} of {size} (RANK, WORLD_SIZE), and MASTER_ADDR is "
            f"{os.environ.get('MASTER_ADDR', '')!r}, which torchrun does not set. Start with torchrun, or unset "
            "TORCHELASTIC_RUN_ID to work in one process."
        )


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


def all_gather(mine: T, kind: Any) -> list[T]:
    """What each process gives, a value of the type `kind` (see `core.messages`), in their order, for all of them.

    Raises:
        SafetyNeuronsError: in all processes, where one gives something else or memory is full in one.
    """
    if process_count() == 1:
        return [mine]
    sent = pack(mine, kind)
    sizes = _gather_sizes(len(sent))
    with sync_errors():
        spaces = [_space(max(sizes)) for _ in sizes]
    given = _gather_bytes(sent, sizes, spaces)
    with sync_errors():
        return [unpack(message, kind, sender) for sender, message in enumerate(given)]


def broadcast(mine: T, kind: Any) -> T:
    """What process 0 gives, a value of the type `kind`, for all of them; what the others give is ignored.

    Raises:
        SafetyNeuronsError: in all processes, where this is something else or memory is full in one.
    """
    if process_count() == 1:
        return mine
    sent = pack(mine, kind) if owns(0) else b""
    size = torch.tensor([len(sent)], device=_device())
    distributed.broadcast(size, src=0)
    with sync_errors():
        space = _space(int(size))
    if owns(0):
        space.copy_(_as_tensor(sent))
    distributed.broadcast(space, src=0)
    with sync_errors():
        return mine if owns(0) else unpack(_as_bytes(space), kind, 0)


def _device() -> str:
    """Where tensors have to be to be sent: scripts may have started their group on GPUs."""
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


def _gather_sizes(mine: int) -> list[int]:
    sizes = [torch.zeros(1, dtype=torch.int64, device=_device()) for _ in range(process_count())]
    distributed.all_gather(sizes, torch.tensor([mine], device=_device()))
    return [int(size) for size in sizes]


def _space(size: int) -> Tensor:
    """Memory for a message of `size` bytes."""
    try:
        return torch.empty(size, dtype=torch.uint8, device=_device())
    except (MemoryError, RuntimeError) as error:
        # PyTorch reports full memory of the CPU as a plain RuntimeError.
        raise SafetyNeuronsError(
            f"There is no memory for a message of {size:,} bytes from another process. Start fewer processes on this "
            "machine, or close other programs."
        ) from error


def _gather_bytes(mine: bytes, sizes: list[int], spaces: list[Tensor]) -> list[bytes]:
    """The bytes of each process, whose numbers are `sizes`; the spaces are as long as the longest."""
    padded = torch.zeros_like(spaces[0])
    padded[: len(mine)] = _as_tensor(mine)
    distributed.all_gather(spaces, padded)
    return [_as_bytes(space[:size]) for space, size in zip(spaces, sizes, strict=True)]


def _as_tensor(message: bytes) -> Tensor:
    """uint8 [bytes]."""
    return torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.empty(0, dtype=torch.uint8)


def _as_bytes(message: Tensor) -> bytes:
    return message.cpu().numpy().tobytes()


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
    failed = torch.tensor([own is not None], dtype=torch.int64)
    max_over_processes([failed])
    if own is None and not failed:
        return
    problem = b"" if own is None else (str(own) or type(own).__name__).encode(errors="backslashreplace")
    problems = [problem]
    if process_count() > 1:
        sizes = _gather_sizes(len(problem))
        problems = _gather_bytes(problem, sizes, [_space(max(sizes)) for _ in sizes])
    if own is None:
        number = next(number for number, text in enumerate(problems) if text)
        own = SafetyNeuronsError(f"Process {number} failed: {problems[number].decode(errors='replace')}")
    own.shared = True
    raise own


class Task(Protocol):
    """What process 0 can ask the others to do: a dataclass of its inputs. It is sent as its class's name and these."""

    def run(self) -> None:
        """Do it. Starts with `sync_errors` around the loading of what it needs."""


@contextlib.contextmanager
def join_processes(tasks: Iterable[type[Task]]) -> Iterator[bool]:
    """Join the processes that torchrun started: true in process 0, whom the others help until it leaves.

    Args:
        tasks: all that process 0 may ask the others to do.

    Raises:
        SafetyNeuronsError: another process ended while process 0 needed it, or the environment is not torchrun's.
    """
    _check_environment()
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    if torch.cuda.is_available():
        torch.cuda.set_device(environment_number("LOCAL_RANK") % torch.cuda.device_count())
    try:
        if distributed.get_rank():
            # Process 0 says whatever there is to say.
            warnings.simplefilter("ignore")
            transformers.logging.set_verbosity_error()
            with contextlib.suppress(KeyboardInterrupt, _LostProcessError), _lost_processes():
                _serve({task.__name__: task for task in tasks})
            yield False
            return
        with _lost_processes():
            yield True
            release_workers()
    finally:
        # After a failure the others may wait for this process anywhere, and notice that the connection is closed.
        if distributed.is_initialized():
            _leave()


class _LostProcessError(SafetyNeuronsError):
    """Another process ended in the middle of the work."""


@contextlib.contextmanager
def _lost_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # gloo has no error class of its own.
        if not any(text in str(error) for text in ("Connection closed by peer", "Connection reset by peer")):
            raise
        raise _LostProcessError(
            "Another process ended before the work was done. Its own output says why; if it says nothing, it was "
            "killed, maybe for its memory. Run the same command again: it continues where it stopped."
        ) from error


def _leave() -> None:
    # What holds the group in a reference cycle, such as a trainer, would abort the process when it ends.
    gc.collect()
    distributed.destroy_process_group()


def release_workers() -> None:
    """Let the other processes end; process 0 goes on like one that was started alone."""
    if process_count() > 1:
        _announce(False)
        _leave()
        for name in VARIABLES:
            os.environ.pop(name, None)


def ask_workers(task: Task) -> None:
    """From process 0: the others run the task. Returns when they have loaded their models.

    Raises:
        SafetyNeuronsError: one of them does not know the task, cannot read its inputs, or fails to load its model.
    """
    if process_count() > 1 and owns(0):
        _announce(True)
        broadcast(type(task).__name__, str)
        with sync_errors():
            pass
        broadcast(task, type(task))
        with sync_errors():
            pass


def _serve(tasks: Mapping[str, type[Task]]) -> None:
    """Do what process 0 asks for until it releases the workers."""
    while _announce(False):
        try:
            name = broadcast("", str)
            with sync_errors():
                if name not in tasks:
                    raise SafetyNeuronsError(
                        f"Process 0 asks for {name!r}, and the tasks are {', '.join(tasks)}. Start all processes with "
                        "the same version of safety-neurons."
                    )
            received: Any = broadcast(None, tasks[name])
            received.run()
        except SafetyNeuronsError as error:
            # Process 0 failed, too, and reports it. Otherwise it may be waiting for this process, which has to end.
            if not error.shared:
                raise


def _announce(task_follows: bool) -> bool:
    """Process 0's word on whether a task follows, for all processes. It waits for no reply, as it may be its last."""
    told = torch.tensor([task_follows], dtype=torch.uint8, device=_device())
    distributed.broadcast(told, src=0)
    return bool(told)
