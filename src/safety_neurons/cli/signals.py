"""Signals that ask this process to end: Ctrl-C, SIGTERM, and SIGHUP when the terminal is closed."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """While the context is open, the first signal raises `Stopped`, and a second ends the process at once.

    Nothing is lost then, either: what is half-written is removed at the next start. A signal that is ignored, as under
    nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def stop(number: int, _frame: FrameType | None) -> None:
        for one in heard:
            signal.signal(one, _end)
        raise Stopped(number)

    try:
        for number in heard:
            signal.signal(number, stop)
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _end(number: int, _frame: FrameType | None) -> None:
    os._exit(exit_status(number))


def exit_status(number: int) -> int:
    """What shells report for a process that a signal ended."""
    return 128 + number
