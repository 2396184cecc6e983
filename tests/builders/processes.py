"""Two processes that work together, as torchrun starts them, without the seconds that each needs to import torch.

They are forked from a process that has imported it. One test in tests/neurons/test_processes.py starts torchrun itself.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from typing import NamedTuple

import torch

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
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")
