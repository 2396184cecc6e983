"""The cost of a computation: wall time, and peak memory above the memory in use before."""

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import psutil
import torch

# Seconds between two looks at the resident memory.
INTERVAL = 0.02


@dataclass
class Cost:
    """Seconds and peak memory in bytes. In a sum, seconds add up and the higher peak counts."""

    seconds: float = 0.0
    peak: int = 0

    def __add__(self, other: Self) -> "Cost":
        return Cost(self.seconds + other.seconds, max(self.peak, other.peak))


@contextlib.contextmanager
def costing(device: torch.device) -> Iterator[Cost]:
    """Measure the cost of the block, which computes on `device`; it is complete when the block ends.

    Memory is that of the device if it is a GPU, otherwise the resident memory of the process. The latter does not show
    memory that the allocator kept from earlier work and hands out again.
    """
    cost = Cost()
    with _gpu_peak(cost, device) if device.type == "cuda" else _resident_peak(cost):
        started = time.monotonic()
        yield cost
        cost.seconds = time.monotonic() - started


@contextlib.contextmanager
def _gpu_peak(cost: Cost, device: torch.device) -> Iterator[None]:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield
    cost.peak = torch.cuda.max_memory_allocated(device) - before


@contextlib.contextmanager
def _resident_peak(cost: Cost) -> Iterator[None]:
    # glibc can return free memory to the system, so that the block has to ask for it again.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    process = psutil.Process()
    before = process.memory_info().rss
    done = threading.Event()

    def look() -> None:
        cost.peak = max(cost.peak, process.memory_info().rss - before)

    def watch() -> None:
        while not done.wait(INTERVAL):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        look()
