"""What a piece of work costs: seconds, and memory above what was in use before."""

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

# How often the process' memory is looked at, in seconds.
INTERVAL = 0.02


@dataclass
class Cost:
    """Seconds add up; of the peaks (bytes) the highest counts."""

    seconds: float = 0.0
    peak: int = 0

    def __add__(self, other: Self) -> "Cost":
        return Cost(self.seconds + other.seconds, max(self.peak, other.peak))


@contextlib.contextmanager
def costing() -> Iterator[Cost]:
    """The cost of what is done while the context is open, known afterwards.

    The memory is that of the GPU where there is one, otherwise the process' resident memory. Of that, what an
    allocator kept of earlier work and gives out again is not seen.
    """
    cost = Cost()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with _clock(cost):
            yield cost
        cost.peak = torch.cuda.max_memory_allocated() - before
    else:
        _give_back()
        with _resident_peak() as above, _clock(cost):
            yield cost
        cost.peak = above[0]


@contextlib.contextmanager
def _clock(cost: Cost) -> Iterator[None]:
    started = time.monotonic()
    yield
    cost.seconds = time.monotonic() - started


def _give_back() -> None:
    """Let the C library return what is free to the system, where it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def _resident_peak() -> Iterator[list[int]]:
    process = psutil.Process()
    before = process.memory_info().rss
    above = [0]
    done = threading.Event()

    def look() -> None:
        above[0] = max(above[0], process.memory_info().rss - before)

    def watch() -> None:
        while not done.wait(INTERVAL):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield above
    finally:
        done.set()
        thread.join()
        look()
