"""What the terminal shows: progress bars and tables."""

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from safety_neurons.models.presets import PRESETS
from safety_neurons.progress import Advance

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class ConsoleListener:
    """Draws a bar for every task, with the time that is left, and prints what is said above them."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console,
        )

    def __enter__(self) -> "ConsoleListener":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextlib.contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """A bar that goes on while the context is open."""
        task = self._progress.add_task(escape(description), total=total)
        yield lambda items: self._progress.advance(task, items)
        if not console.is_terminal:
            console.print(f"{escape(description)}: done", soft_wrap=True)

    def say(self, message: Any) -> None:
        """Print above the bars."""
        console.print(escape(message) if isinstance(message, str) else message)


def print_error(message: str) -> None:
    """One paragraph on standard error."""
    errors.print(f"[bold red]Error:[/bold red] {escape(message)}")


def percent(row: dict[str, Any]) -> str:
    """A rate with its interval, and what could not be judged."""
    if row["value"] is None:
        return "none could be judged"
    text = f"{row['value']:.0%} ({row['low'] * 100:.0f}-{row['high'] * 100:.0f})"
    return text + (f"\n{row['unscored']} unscored" if row["unscored"] else "")


def print_stage(results: dict[str, Any], stage: str) -> None:
    """The table of one stage, where it has one."""
    if stage == "calibrate":
        _print_calibration(results)
    elif stage == "evaluate":
        _print_evaluation(results)


def print_results(results: dict[str, Any]) -> None:
    """The tables of a whole run."""
    _print_calibration(results)
    _print_evaluation(results)


def _print_calibration(results: dict[str, Any]) -> None:
    rows = [row for row in results["rows"] if row["stage"] == "calibrate"]
    if not rows:
        return
    table = _table(results, "Do the neurons cause refusals? Share refused (95% interval)")
    for column in ("prompts", "calibration", "neurons", "refused", "n"):
        table.add_column(column, justify="right" if column == "n" else "left")
    for row in rows:
        table.add_row(row["prompts"], row["condition"], _subject(row), percent(row), str(row["n"]))
    console.print(Padding(table, (1, 0, 0, 0)))


def _table(results: dict[str, Any], title: str) -> Table:
    """A table that says so where the neurons are those of some layers only."""
    from safety_neurons.report.summary import partial

    caption = partial(results) or None
    return Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD)


def _subject(row: dict[str, Any]) -> str:
    return "-" if row["subject"] == "untouched" else str(row["subject"])


def _print_evaluation(results: dict[str, Any]) -> None:
    rows = [row for row in results["rows"] if row["stage"] == "evaluate"]
    if not rows:
        return
    table = _table(results, "What tuning did (95% interval)")
    for column in ("measure", "attack", "before", "after", "n"):
        table.add_column(column, justify="right" if column == "n" else "left")
    after = {(row["prompts"], row["attack"], row["metric"]): row for row in rows if row["condition"] == "after"}
    for row in rows:
        if row["condition"] == "before":
            measure = row["metric"] if row["prompts"] == "harmful" else f"{row['prompts']} {row['metric']}"
            tuned = after[row["prompts"], row["attack"], row["metric"]]
            last = row["attack"] == "mean"
            table.add_row(measure, row["attack"], percent(row), percent(tuned), str(row["n"]), end_section=last)
    console.print(Padding(table, (1, 0, 1, 0)))


def print_comparison(results: dict[str, Any]) -> None:
    """The tables of a comparison of scores."""
    from safety_neurons.compare.tables import notes, tables

    for found in tables(results):
        table = Table(title=escape(found.title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, column in enumerate(found.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in found.rows:
            table.add_row(*map(escape, row))
        console.print(Padding(table, (1, 0, 0, 0)))
    for note in notes(results):
        console.print(escape(note))


def print_models() -> None:
    """All presets, and how to get each."""
    from safety_neurons.models.locate import availability

    table = Table(title="Presets", title_justify="left", box=SIMPLE_HEAD)
    for column in ("name", "size", "licence", "here", "how to get it"):
        table.add_column(column, no_wrap=column in ("name", "size"), overflow="fold")
    for preset in PRESETS.values():
        here, how = availability(preset)
        table.add_row(preset.name, f"{preset.parameters:g}B", preset.licence, here, how)
    console.print(table)
