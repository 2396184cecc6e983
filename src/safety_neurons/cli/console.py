"""The terminal: progress bars, and errors."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from safety_neurons.cli.streams import Stream
from safety_neurons.core.progress import Advance
from safety_neurons.core.tables import Table
from safety_neurons.core.terminal import InertConsole, TerminalTable
from safety_neurons.core.visible import line

console = InertConsole(file=cast(IO[str], Stream("stdout")))
errors = InertConsole(file=cast(IO[str], Stream("stderr")), stderr=True)
# Bars of finished work that stay in sight.
FINISHED_BARS = 12
# Characters of what a bar is for.
_DESCRIPTION = 200


class ConsoleListener:
    """Draws a bar for every task, with the time that is left, and prints what is said above them."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._finished: list[TaskID] = []

    def __enter__(self) -> "ConsoleListener":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextlib.contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """A bar that goes on while the context is open."""
        task = self._progress.add_task(line(description, _DESCRIPTION), total=total)
        try:
            yield lambda items: self._progress.advance(task, items)
        finally:
            # One that failed shows how far it came.
            self._progress.stop_task(task)
            self._finished.append(task)
        for old in self._finished[:-FINISHED_BARS]:
            self._progress.update(old, visible=False)
        if not console.is_terminal:
            print_line(f"{line(description, _DESCRIPTION)}: done")

    def say(self, message: Any) -> None:
        """Print above the bars."""
        console.print(line(message) if isinstance(message, str) else message)


def print_line(text: str) -> None:
    """One line, which only the terminal breaks."""
    console.print(line(text), soft_wrap=True)


def print_tables(tables: Sequence[Table], notes: Sequence[str] = ()) -> None:
    """Tables with what a reader must know of them."""
    for table in tables:
        console.print(Padding(TerminalTable(table), (1, 0, 0, 0)))
    for note in notes:
        console.print(line(note))


def flush() -> None:
    """Write what is left of standard output, so that a failure is told before the process ends."""
    console.file.flush()


def print_error(message: str) -> None:
    """One paragraph on standard error."""
    errors.print(Text.assemble(("Error:", "bold red"), " ", line(message)))
