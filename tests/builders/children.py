"""Work in a forked child, so that a hang is seen, and memory has an end."""

import os
import resource
import select
import signal
import traceback
import warnings
from collections.abc import Callable

from safety_neurons.core.errors import SafetyNeuronsError

GIBIBYTE = 1 << 30


def outcome(work: Callable[[], object], seconds: float = 20, memory: int = 6 * GIBIBYTE) -> str:
    """How work ends in a child of its own: "done", "error: MESSAGE" of a SafetyNeuronsError, a traceback, or "hangs".

    Args:
        memory: the address space that it may take, in bytes, more than this process has now.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(_child(work, writing, memory))
    os.close(writing)
    try:
        parts: list[bytes] = []
        while select.select([reading], [], [], seconds)[0]:
            part = os.read(reading, 1 << 16)
            if not part:
                return b"".join(parts).decode(errors="replace") or "killed"
            parts.append(part)
        return "hangs"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


def _child(work: Callable[[], object], writing: int, memory: int) -> int:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        work()
        said = "done"
    except SafetyNeuronsError as error:
        said = f"error: {error}"
    except BaseException:  # noqa: BLE001 (the child reports whatever it is)
        said = traceback.format_exc()
    os.write(writing, said.encode(errors="replace")[: 1 << 15])
    return 0
