"""One typed table and its renderers: terminal (core/terminal.py), Markdown, and HTML (report/macros.html.j2).

A table holds untrusted names, prompts and answers unchanged; each renderer makes them inert.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from safety_neurons.core.markdown import Markdown, code_block, escaped, paragraph

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


def markdown(tables: Sequence[Table], notes: Sequence[str] = (), command: str = "") -> Markdown:
    """The notes, the command and the tables, each table under its title."""
    parts: list[str] = [*map(paragraph, notes), *([code_block(command)] if command else [])]
    for table in tables:
        parts += [f"**{escaped(table.title)}**", *([paragraph(table.caption)] if table.caption else [])]
        lines: list[Sequence[str]] = [
            [escaped(column.name) for column in table.columns],
            ["--:" if column.number else "---" for column in table.columns],
            *([escaped(cell.text) for cell in one.cells] for one in table.rows),
        ]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return Markdown("\n\n".join(parts) + "\n")
