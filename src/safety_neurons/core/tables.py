"""One typed table and its renderers: terminal (core/terminal.py), Markdown, and HTML (report/macros.html.j2).

Names, prompts and model output in a table are untrusted. A table holds them as they are; each renderer escapes them.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

# Controls, formats (all bidirectional marks are among them), lone surrogates, private use, line separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_NAMED = {"\n": "↵", "\t": "→", "\r": "\\r"}
# No language stacks more marks on one letter; they would climb over the lines above.
_MARKS_ON_A_LETTER = 4
_MARKUP = re.compile(r"([\\`*_{}\[\]>#|~$])")
# Characters of a cell, a heading or a note.
LIMIT = 600

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
