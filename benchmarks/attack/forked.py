"""The command line in forked processes, which need no seconds to import torch, and can be killed."""

import contextlib
import importlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from safety_neurons import cli
from safety_neurons.calibration import clouds
from safety_neurons.experiments import guard_test

# Imported once, for all processes that are forked.
for name in ("experiments.auto_tune", "report.page", "runs.stages"):
    importlib.import_module(f"safety_neurons.{name}")
# Intervals take most of the time of some commands, and nothing here looks at them.
clouds.RESAMPLES = guard_test.RESAMPLES = 20
# A command that takes longer is counted as a hang.
SECONDS = 120.0
# What a process may allocate besides what it was forked with.
MEMORY = 8 << 30


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, negative for a signal; None if it hung."""

    arguments: tuple[str, ...]
    status: int | None
    output: str
    seconds: float

    @property
    def crashed(self) -> bool:
        """Whether it ended as no command may."""
        return self.status not in (0, 1, 2, 130, 143, None) or "Traceback (most recent call last)" in self.output


@dataclass
class Started:
    """A command in a process of its own."""

    arguments: tuple[str, ...]
    process: int
    output: Path
    began: float = field(default_factory=time.monotonic)

    def end(self, seconds: float = SECONDS) -> Ended:
        """Wait until it ends; after so many seconds from now it is killed, and counted as a hang."""
        until = time.monotonic() + seconds
        while (status := self.poll()) is None and time.monotonic() < until:
            time.sleep(0.005)
        if status is None:
            self.send(signal.SIGKILL)
            os.waitpid(self.process, 0)
        text = self.output.read_text(encoding="utf-8", errors="surrogateescape")
        self.output.unlink()
        return Ended(self.arguments, status, text, time.monotonic() - self.began)

    def poll(self) -> int | None:
        process, status = os.waitpid(self.process, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if process else None

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, number)


def start(arguments: Sequence[str], prepare: Callable[[], None] | None = None) -> Started:
    """Start a command; `prepare` is called in its process first."""
    handle, name = tempfile.mkstemp(suffix=".txt")
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        _work(tuple(arguments), handle, prepare)
    os.close(handle)
    return Started(tuple(arguments), process, Path(name))


def run(arguments: Sequence[str], prepare: Callable[[], None] | None = None, seconds: float = SECONDS) -> Ended:
    """Run a command to its end."""
    return start(arguments, prepare).end(seconds)


def _work(arguments: tuple[str, ...], output: int, prepare: Callable[[], None] | None) -> None:
    """What the child does; it never returns."""
    status = 70
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, hard))
        os.environ.update(COLUMNS="100", NO_COLOR="1")
        if prepare is not None:
            prepare()
        sys.argv = ["safety-neurons", *arguments]
        cli.main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def killed_on_the_way(
    arguments: Sequence[str], kills: int, longest: float, draw: Callable[[], float], number: int, seconds: float
) -> Iterator[Ended | None]:
    """Start a command again and again, and send a signal after a random time, up to `longest` seconds.

    Yields None for each start that was stopped by the signal, and at last how it ended by itself, within `seconds`.
    """
    for _ in range(kills):
        started = start(arguments)
        until = time.monotonic() + draw() * longest
        while (status := started.poll()) is None and time.monotonic() < until:
            time.sleep(0.002)
        if status is not None:
            text = started.output.read_text(encoding="utf-8", errors="replace")
            yield Ended(started.arguments, status, text, time.monotonic() - started.began)
            return
        started.send(number)
        ended = started.end()
        yield None if ended.status in (-number, 128 + number) else ended
    yield run(arguments, seconds=seconds)
