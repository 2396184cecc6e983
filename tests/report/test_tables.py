"""Each result is laid out once: terminal, Markdown and page show the same columns and the same cells."""

import html
import io
import re
from collections.abc import Iterator

import pytest
from jinja2 import Environment
from markdown_it import MarkdownIt
from rich.console import Console

from builders.report import PAYLOAD, extended_grid, full, mapped, poisoned
from safety_neurons.core.markdown import escaped
from safety_neurons.core.tables import Table, TableCell, markdown, numbers, row, words
from safety_neurons.core.terminal import TerminalTable, split
from safety_neurons.core.visible import visible
from safety_neurons.report import PARTS, RunResults, intervention_tables, run_tables, tables_of
from safety_neurons.report.comparison import comparison_tables
from safety_neurons.report.page import template

Grid = list[list[str]]


def tables() -> Iterator[Table]:
    """Every table of a run with all sections, benign and hostile; and those of other results."""
    content = full() | {"evaluation": extended_grid()}
    results = RunResults.of(content)
    yield from tables_of(results, "neurons", "words", "training", *PARTS).tables
    yield from run_tables.small_print(results)
    yield run_tables.vocabulary_layers(results)
    yield run_tables.single_neurons(RunResults.of(mapped()))
    assert results.search
    yield from map(intervention_tables.intervention_trials, results.search.directions)
    yield from comparison_tables({"first": results, "second": RunResults.of(full())})
    yield from tables_of(RunResults.of(poisoned(content)), *PARTS).tables
    yield Table.of("a|b *c* <d>", (*words("x\u202e|"), *numbers("_n_")), [[PAYLOAD, TableCell("1", "(0\N{EN DASH}2)")]])


def as_terminal(table: Table) -> Grid:
    """Columns and cells as laid out, without line breaks."""
    # One column after the other, in a terminal in which nothing has to be broken.
    (columns,) = split(table, 4000)
    return [[" ".join(lines) for lines in one] for one in zip(*(column.cells for column in columns), strict=True)]


def as_markdown(table: Table) -> Grid:
    rows: Grid = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown([table])):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append("")
        elif token.type == "inline" and rows and table.title not in token.content:
            rows[-1][-1] = "".join(part.content for part in token.children or ())
    return rows


def as_page(table: Table) -> Grid:
    environment: Environment = template("macros.html.j2").environment
    source = environment.from_string(
        '{% from "macros.html.j2" import table with context %}{{ table(found, panel="x") }}'
    )
    body = source.render(found=table, figures={})
    rows = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", one, re.S) for one in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.S)
    ]
    return [[" ".join(html.unescape(re.sub(r"<[^>]+>", "", cell)).split()) for cell in one] for one in rows]


@pytest.mark.parametrize("table", tables(), ids=lambda table: visible(table.title, 40))
def test_all_renderers_show_the_same_columns_and_cells(table: Table) -> None:
    expected = [[visible(column.name) for column in table.columns]]
    expected += [[visible(cell.text) for cell in one.cells] for one in table.rows]
    expected = [[" ".join(cell.split()) for cell in one] for one in expected]
    for shown in (as_terminal(table), as_markdown(table), as_page(table)):
        # The page and Markdown cut a column's name earlier than a cell.
        found = [[" ".join(cell.split()) for cell in one] for one in shown]
        assert [len(one) for one in found] == [len(one) for one in expected]
        for one, other in zip(found, expected, strict=True):
            for cell, text in zip(one, other, strict=True):
                assert cell == text or (cell.endswith("…") and text.startswith(cell[:-1]))


def test_hostile_cells_are_text_in_the_terminal() -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    hostile = "[red]x[/red] \x1b[31m \u202e " + "W" * 5000
    console.print(TerminalTable(Table.of(hostile, words(hostile), [[hostile]], hostile)))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]x" in printed
    assert "\x1b[31m" not in printed
    assert "\u202e" not in printed
    assert printed.count("W") < 4 * 700


def test_hostile_cells_are_text_in_markdown() -> None:
    hostile = "a|b\n# c <img src=x> ![d](e) `f` *g* \\"
    table = Table.of(hostile, words(hostile), [[hostile]], hostile)
    text = markdown([table], [hostile], "x\n```\n# y")
    assert "<" not in text
    assert not re.search(r"^#", text, re.M)
    assert "!\\[d\\]" in text
    assert escaped("a|b") == r"a\|b"


def test_rows_are_marked_where_the_medium_can() -> None:
    table = Table.of(
        "t", (*words("a"), *numbers("b")), [row(["x", "1"], "chosen"), row(["y", "2"], "mean"), ["z", "3"]]
    )
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    console.print(TerminalTable(table))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert "\x1b[1m" in next(line for line in lines if "x" in line)
    assert ["z" in line for line in lines[-2:]] == [False, True], "the mean is set apart"
