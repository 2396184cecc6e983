"""Peak memory of a piece of work, measured in a process of its own."""

import contextlib
import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch


def peak_while(work: Callable[[], Any]) -> int:
    """Bytes that this process takes at its peak during the work, above what it took before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    # Freed memory that the process still holds would be taken again unseen.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux begins its high-water mark anew.
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def in_fresh_process(measure: Callable[..., int], *arguments: Any) -> int:
    """What `measure` returns in a process of its own."""
    # Freed memory goes back to the system at once, so that what is resident is what is in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(1 << 16)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def mebibytes(of: int, over: int) -> str:
    """Two sizes beside each other."""
    return f"{of / 2**20:.0f} MiB over {over / 2**20:.0f}"
