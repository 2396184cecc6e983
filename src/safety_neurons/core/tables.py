"""A table of text that is shown in the terminal and written as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class TextTable:
    """Headings and rows of text; the first columns are words, the others numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    words: int = 1


def rich_table(found: TextTable) -> Table:
    """For the terminal."""
    result = Table(title=escape(found.title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(found.columns):
        result.add_column(escape(column), justify="left" if number < found.words else "right", overflow="fold")
    for row in found.rows:
        result.add_row(*map(escape, row))
    return result


def inert(said: str) -> str:
    """Names that others chose must not become markup where Markdown is read."""
    return said.replace("&", "&amp;").replace("<", "&lt;")


def markdown(tables: Sequence[TextTable], before: Sequence[str] = ()) -> str:
    """Paragraphs as they are, then the tables, each after its title."""
    parts = list(before)
    for table in tables:
        rule = ["---"] * table.words + ["--:"] * (len(table.columns) - table.words)
        parts.append(f"**{inert(table.title)}**\n\n" + "\n".join(map(_line, [table.columns, rule, *table.rows])))
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(inert(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
