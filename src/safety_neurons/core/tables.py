"""One typed table and its renderers: terminal, Markdown, and HTML (the macro `table` in report/macros.html.j2).

Names, prompts and model output in a table are untrusted. A table holds them as they are; each renderer escapes them.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import rich.table
from rich.box import SIMPLE_HEAD
from rich.text import Text

# Controls, formats (all bidirectional marks are among them), lone surrogates, private use, line separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_NAMED = {"\n": "↵", "\t": "→", "\r": "\\r"}
# No language stacks more marks on one letter; they would climb over the lines above.
_MARKS_ON_A_LETTER = 4
_MARKUP = re.compile(r"([\\`*_{}\[\]>#|~$])")
# Characters of a cell, a heading or a note; and of a word that the terminal keeps whole.
LIMIT = 600
_WORD = 12
# Tables wider than this get narrower headings and gaps, and details on lines of their own.
_TERMINAL = 80

Mark = Literal["", "chosen", "mean", "section"]


@dataclass(frozen=True)
class Column:
    """A heading; numbers are aligned right."""

    name: str
    number: bool = False


@dataclass(frozen=True)
class TableCell:
    """The text of a cell. `detail` belongs to `value` and is smaller on the page: an interval, unscored answers.

    `words` are vocabulary entries, which make up the value. The page also shows `shade` (0 to 1) as a color, of another
    hue where it is about `safe` prompts; `reason` as a hint; and opens `entry` of the details beside the table.
    """

    value: str
    detail: str = ""
    words: tuple[str, ...] = ()
    shade: float | None = None
    safe: bool = False
    entry: int | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        """The value with its detail."""
        return f"{self.value} {self.detail}".strip()


@dataclass(frozen=True)
class TableRow:
    """Cells from left to right. "section" ends a group of rows; "chosen" and "mean" are set apart."""

    cells: tuple[TableCell, ...]
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """A title, columns and rows; `caption` is what a reader must know of its numbers."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    caption: str = ""

    @classmethod
    def of(
        cls, title: str, columns: Sequence[Column], rows: Iterable[Iterable[object] | TableRow], caption: str = ""
    ) -> "Table":
        """A table of whole rows, or of lists of cells; what is not a `TableCell` is shown as `str` shows it."""
        made = tuple(one if isinstance(one, TableRow) else row(one) for one in rows)
        return cls(title, tuple(columns), made, caption)


def row(cells: Iterable[object], mark: Mark = "") -> TableRow:
    return TableRow(tuple(cell if isinstance(cell, TableCell) else TableCell(str(cell)) for cell in cells), mark)


def words(*names: str) -> tuple[Column, ...]:
    """Columns of text."""
    return tuple(map(Column, names))


def numbers(*names: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(name, number=True) for name in names)


def visible(text: Any, limit: int = LIMIT) -> str:
    """The text with every hidden character as an escape, cut after `limit` characters.

    Applying it twice changes nothing more.
    """
    text = str(text)
    shown: list[str] = []
    marks = 0
    # The cut comes first: a megabyte of one word costs no more than its beginning.
    for letter in text[:limit]:
        category = unicodedata.category(letter)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if letter in _NAMED:
            shown.append(_NAMED[letter])
        elif category in _HIDDEN or marks > _MARKS_ON_A_LETTER:
            shown.append(f"\\u{ord(letter):04x}" if ord(letter) <= 0xFFFF else f"\\U{ord(letter):08x}")
        else:
            shown.append(letter)
    if len(text) > limit:
        shown.append("…")
    return "".join(shown)


def rich_table(table: Table) -> rich.table.Table:
    """The table for the terminal."""
    found = [
        [visible(column.name), *(visible(one.cells[number].text) for one in table.rows)]
        for number, column in enumerate(table.columns)
    ]
    wide = sum(max(map(len, cells)) + 2 for cells in found) > _TERMINAL
    result = rich.table.Table(
        title=Text(visible(table.title)),
        title_justify="left",
        caption=Text(visible(table.caption)) if table.caption else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0 if wide else 1, 0, 0),
        pad_edge=False,
    )
    for column, cells in zip(table.columns, found, strict=True):
        heading = cells[0].replace(" ", "\n") if wide and column.number else cells[0]
        # Short words of text are not broken to make room for other columns.
        whole = max((len(word) for cell in cells for word in cell.split() if len(word) <= _WORD), default=1)
        least = None if column.number else whole
        result.add_column(Text(heading), justify="right" if column.number else "left", overflow="fold", min_width=least)
    for one in table.rows:
        parts = [
            [visible(cell.value), visible(cell.detail)] if cell.detail else [visible(cell.value)] for cell in one.cells
        ]
        result.add_row(
            *(Text(("\n" if wide else " ").join(part)) for part in parts),
            style="bold" if one.mark in ("chosen", "mean") else None,
            end_section=one.mark in ("section", "mean"),
        )
    return result


def escaped(text: Any, limit: int = LIMIT) -> str:
    """One line of Markdown that shows just these characters, also within a table."""
    return _MARKUP.sub(r"\\\1", visible(text, limit)).replace("&", "&amp;").replace("<", "&lt;")


def markdown(tables: Sequence[Table], notes: Sequence[str] = (), command: str = "") -> str:
    """The notes, the command and the tables, each table under its title."""
    parts = list(map(escaped, notes))
    parts += [f"```\n{visible(command, 4000).replace('```', '')}\n```"] if command else []
    for table in tables:
        parts += [f"**{escaped(table.title)}**", *([escaped(table.caption)] if table.caption else [])]
        lines = [
            [escaped(column.name) for column in table.columns],
            ["--:" if column.number else "---" for column in table.columns],
            *([escaped(cell.text) for cell in one.cells] for one in table.rows),
        ]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"
