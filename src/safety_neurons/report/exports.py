"""The results in other forms than a run's page: tables as Markdown, runs side by side, and figures as files."""

import importlib.util
from pathlib import Path
from typing import Any

import plotly.io

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, write_text
from safety_neurons.core.tables import TextTable, inert, markdown
from safety_neurons.report import figures, grid_figures, text
from safety_neurons.report.results import check
from safety_neurons.report.run_tables import introduction, notes, run_tables
from safety_neurons.report.side_by_side import Runs, comparison_tables

# Pixels; PNG files have twice as many in each direction.
_WIDTH = 900
_PAPER = {
    "paper_bgcolor": "#fff",
    "plot_bgcolor": "#fff",
    "font": {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": "#1b1d21"},
    "width": _WIDTH,
}
_GRID = {"gridcolor": "#e1e4e8"}
# Characters of a name or a sentence.
_MOST = 1000


def write_markdown(runs: Runs, path: Path) -> None:
    """Write one run's tables, or those of several runs side by side, as Markdown.

    Raises:
        SafetyNeuronsError: a run's results cannot be read, or the disk failed.
    """
    for results in runs.values():
        check(results)
    if len(runs) == 1:
        (results,) = runs.values()
        before, found = introduction(results), run_tables(results)
        if command := results["run"].get("command"):
            before = [*map(_shown, before), f"```\n{text.visible(command).replace('```', '')}\n```"]
        else:
            before = list(map(_shown, before))
    else:
        before = [_shown(note) for results in runs.values() for note in notes(results)]
        found = comparison_tables(runs)
    write_text(path, markdown([_seen(table) for table in found], list(dict.fromkeys(before))))


def _seen(table: TextTable) -> TextTable:
    columns, *rows = ([text.visible(cell, _MOST) for cell in row] for row in (table.columns, *table.rows))
    return TextTable(text.visible(table.title, _MOST), columns, rows, table.words)


def _shown(said: str) -> str:
    return inert(text.visible(said, _MOST))


def write_figures(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write every figure of a run as PNG and SVG, on white paper; returns the files.

    Raises:
        SafetyNeuronsError: Kaleido or Chrome is missing, or the disk failed.
    """
    check(results)
    if importlib.util.find_spec("kaleido") is None:
        raise SafetyNeuronsError(
            "Figures are written as files by Kaleido, which is not installed: "
            "pip install 'safety-neurons[figures]'. It also needs Chrome or Chromium."
        )
    drawn = [*figures.figures(results).values(), *grid_figures.figures(results)]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    made = [(figure, folder / f"{figure.name}.{kind}") for figure in drawn for kind in ("png", "svg")]
    files = [path for _, path in made]
    for path in files:
        path.unlink(missing_ok=True)
    try:
        plotly.io.write_images(
            fig=[_on_paper(figure.specification) for figure, _ in made],
            file=files,
            width=_WIDTH,
            height=[figure.height for figure, _ in made],
            scale=[2 if path.suffix == ".png" else 1 for path in files],
        )
    except RuntimeError as error:
        raise SafetyNeuronsError(
            f"Kaleido could not draw the figures: {' '.join(str(error).split())} It needs Chrome or Chromium; where it "
            "is not found by itself, BROWSER_PATH says where it is."
        ) from error
    if lost := [path.name for path in files if not path.exists()]:
        raise SafetyNeuronsError(
            f"Kaleido did not write {', '.join(lost[:5])}. Try again; if it stays so, check that Chrome starts."
        )
    return files


def _on_paper(specification: dict[str, Any]) -> dict[str, Any]:
    """The figure with the colors that the page's style sheet gives it on screen."""
    layout = specification["layout"] | _PAPER
    layout |= {name: axis | _GRID for name, axis in layout.items() if name.startswith(("xaxis", "yaxis"))}
    return {"data": specification["data"], "layout": layout}
