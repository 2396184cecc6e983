"""Two processes that work together, as torchrun starts them, without the seconds that each needs to import torch.

They are forked from a process that has imported it, and can neither read nor write pickles. One test in
tests/neurons/test_processes.py starts torchrun itself.
"""

import multiprocessing
import os
import pickle
import runpy
import socket
import sys
import tempfile
import time
from typing import Any, NamedTuple, NoReturn

import torch
from torch.distributed import distributed_c10d

IMPORTED = ("transformers.trainer", "safety_neurons.runs.pipeline", "safety_neurons.tuning.safetune")
COUNT = 2


class Ended(NamedTuple):
    """The exit code of each process, negative for one that was killed, and both streams of all of them."""

    codes: list[int | None]
    output: str


def run_together(*arguments: str, seconds: float = 120) -> Ended:
    """Run a script, or the module after `-m`, with its arguments in two processes that find each other.

    Processes that have not ended after `seconds` are killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    with tempfile.NamedTemporaryFile() as output:
        processes = [
            context.Process(target=_work, args=(arguments, rank, os.environ | address, output.name))
            for rank in range(COUNT)
        ]
        for process in processes:
            process.start()
        until = time.monotonic() + seconds
        for process in processes:
            process.join(max(0, until - time.monotonic()))
            process.kill()
            process.join()
        return Ended([process.exitcode for process in processes], output.read().decode())


def _work(arguments: tuple[str, ...], rank: int, environment: dict[str, str], output: str) -> None:
    stream = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.clear()
    os.environ.update(environment, COLUMNS="300", TORCHELASTIC_RUN_ID="none")
    os.environ.update(dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)), GROUP_RANK="0", GROUP_WORLD_SIZE="1")
    os.environ.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(COUNT)))
    torch.set_num_threads(1)
    refuse_pickles()
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def refuse_pickles() -> None:
    """From here on, whatever reads or writes a pickle in this process fails."""

    def refuse(*_arguments: Any, **_options: Any) -> NoReturn:
        raise AssertionError("a pickle")

    for name in ("load", "loads", "dump", "dumps"):
        setattr(pickle, name, refuse)
    for name in ("load", "save"):
        setattr(torch, name, refuse)
    for name in ("Unpickler", "_Unpickler", "Pickler", "_Pickler"):
        # Still classes: libraries derive their own from them.
        setattr(pickle, name, type(name, (getattr(pickle, name),), {"__init__": refuse}))
    # torch's object collectives.
    distributed_c10d._pickler = distributed_c10d._unpickler = refuse  # type: ignore[assignment]
