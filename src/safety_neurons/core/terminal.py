"""A console that text of strangers cannot command, and a table in it.

A table has columns as wide as there is room for, broken between words, and never inside one that fits. Where whole
words do not fit, long names break after a hyphen, slash, colon and the like. Where that does not fit, the columns are
split among several tables, each of which begins with the columns that say what a row is about.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import rich.table
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

from safety_neurons.core.tables import Column, Table, TableRow
from safety_neurons.core.visible import spelled_out, visible

# Where a name may break when words do not fit; a number may not.
_BREAK = re.compile(r"(?<=[-_:=.,/])(?=[^\W\d_])")
_AFTER_COMMA = re.compile(r"(?<=,) ")
# A column that is split off stays at least this wide.
_LEAST = 8
# rich remembers the widths of short texts only.
_width = functools.lru_cache(4096)(cell_len)


class InertConsole(Console):
    """A console that reads no markup and no emoji codes, and writes no control characters and links but rich's own.

    This is the last guard, for text that was not made inert (`core.visible.line`) before it was laid out.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"markup": False, "emoji": False, "highlight": False} | options))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable."""
        return map(_inert, super().render(renderable, options))


def _inert(segment: Segment) -> Segment:
    text, style, control = segment
    if control is not None:
        return segment
    return Segment(spelled_out(text), style.update_link(None) if style and style.link else style)


@dataclass(frozen=True)
class TerminalTable:
    """A table that rich prints as wide as the console."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table, width = self.table, options.max_width
        yield Text(visible(table.title), "table.title", overflow="fold")
        for number, columns in enumerate(split(table, width)):
            if number:
                yield ""
            yield _drawn(columns, table, width)
        if table.caption:
            yield Text(visible(table.caption), "table.caption", overflow="fold")


@dataclass(frozen=True)
class LaidOut:
    """The lines of a column's heading and cells, each at most `width` cells of the terminal wide."""

    column: Column
    cells: tuple[tuple[str, ...], ...]
    width: int


def split(table: Table, width: int) -> list[list[LaidOut]]:
    """The columns of each part of the table, none of which is wider than `width`."""
    columns = [_Cells.of(table, number) for number in range(len(table.columns))]
    if not columns:
        return []
    if fitted := _fit(columns, width):
        return [fitted]
    keys = _keys(table)
    parts: list[list[LaidOut]] = []
    rest = columns[keys:]
    while rest:
        whole, broken = (
            next((n for n in range(len(rest), 0, -1) if _fit([*columns[:keys], *rest[:n]], width, wholly)), 0)
            for wholly in (True, False)
        )
        # Names are broken where that saves a part.
        saves = not whole or -(-len(rest) // broken) < -(-len(rest) // whole)
        chosen = [*columns[:keys], *rest[: max(1, broken if saves else whole)]]
        parts.append(_fit(chosen, width) or _folded(chosen, width))
        rest = rest[len(chosen) - keys :]
    return parts or [_folded(columns, width)]


def _keys(table: Table) -> int:
    """The number of columns that say what a row is about: the text before the numbers, or the first column."""
    text = next((number for number, column in enumerate(table.columns) if column.number), 1)
    return min(max(text, 1), len(table.columns) - 1)


@dataclass(frozen=True)
class _Cells:
    """A column's heading and cells, each as parts that begin on a line of their own where there is too little room."""

    column: Column
    cells: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, table: Table, number: int) -> "_Cells":
        found = (one.cells[number] for one in table.rows)
        # "13 unscored" stays together, and so does an interval. A cell may be empty.
        rows = (
            (visible(one.value), *(part for part in _AFTER_COMMA.split(visible(one.detail)) if part)) for one in found
        )
        return cls(table.columns[number], ((visible(table.columns[number].name),), *rows))

    @property
    def natural(self) -> int:
        return max(_width(" ".join(parts)) for parts in self.cells)

    def least(self, within_words: bool) -> int:
        """The width of the longest word, or of the longest part of one; what belongs to a value is not broken."""
        words = [word for first, *more in self.cells for word in (*first.split(), *more)]
        pieces = [piece for word in words for piece in _BREAK.split(word)] if within_words else words
        return max(map(_width, pieces), default=1)

    def wrapped(self, width: int) -> LaidOut:
        return LaidOut(self.column, tuple(tuple(_lines(parts, width)) for parts in self.cells), width)


def _fit(columns: Sequence[_Cells], width: int, wholly: bool = False) -> list[LaidOut] | None:
    """The columns within this width, in the roomiest way that there is; None if there is none."""
    for gap, within_words in ((2, False), (1, False), (2, True), (1, True)):
        if within_words and wholly:
            return None
        room = width - gap * (len(columns) - 1)
        least = [max(one.least(within_words), 1) for one in columns]
        if sum(least) <= room:
            widths = _shrunk([one.natural for one in columns], least, room)
            return [one.wrapped(each) for one, each in zip(columns, widths, strict=True)]
    return None


def _folded(columns: Sequence[_Cells], width: int) -> list[LaidOut]:
    """The columns within this width, at the cost of words that are longer than their column."""
    room = width - (len(columns) - 1)
    least = [min(one.least(True), max(_LEAST, room // len(columns))) for one in columns]
    widths = _shrunk([one.natural for one in columns], least, room)
    return [one.wrapped(max(each, 1)) for one, each in zip(columns, widths, strict=True)]


def _shrunk(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """The widths, the widest made narrower until all fit the room, none narrower than its least if that is possible."""
    found = list(widths)
    while sum(found) > room:
        wide = [number for number, (one, bound) in enumerate(zip(found, least, strict=True)) if one > bound]
        number = max(wide or range(len(found)), key=found.__getitem__)
        if found[number] <= 1:
            break
        found[number] -= 1
    return found


def _lines(parts: Sequence[str], width: int) -> Iterator[str]:
    """A cell's lines: value and detail together if they fit, else each on lines of its own."""
    whole = " ".join(parts)
    for part in (whole,) if _width(whole) <= width else parts:
        yield from _wrapped(part, width) or [""]


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and _width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for piece in [word] if _width(word) <= width else _BREAK.split(word):
            if _width(lines[-1] + piece) <= width:
                lines[-1] += piece
            else:
                lines += chop_cells(piece, width)
        lines = [line for line in lines if line]
    return lines


def _drawn(columns: Sequence[LaidOut], table: Table, width: int) -> rich.table.Table:
    roomy = sum(one.width + 2 for one in columns) - 2 <= width
    drawn = rich.table.Table(box=SIMPLE_HEAD, padding=(0, 1 if roomy else 0, 0, 0), pad_edge=False, show_edge=False)
    for one in columns:
        heading, justify = Text("\n".join(one.cells[0])), "right" if one.column.number else "left"
        drawn.add_column(heading, justify=justify, width=one.width, no_wrap=True)  # type: ignore[arg-type]
    for number, row in enumerate(table.rows, 1):
        drawn.add_row(
            *(Text("\n".join(one.cells[number])) for one in columns), style=_style(row), end_section=_ends(row)
        )
    return drawn


def _style(row: TableRow) -> str | None:
    return "bold" if row.mark in ("chosen", "mean") else None


def _ends(row: TableRow) -> bool:
    return row.mark in ("section", "mean")
