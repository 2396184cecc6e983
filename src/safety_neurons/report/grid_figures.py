"""The grid as figures for files; on the page it is a table, which every reader can use."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from safety_neurons.report import grid_tables, text
from safety_neurons.report.drawing import Figure, make_figure
from safety_neurons.report.grid_tables import Grid, GridCell

_SCALE = [[0, "#fdf5ee"], [1, "#e3935a"]]


def figures(results: Mapping[str, Any]) -> list[Figure]:
    """A heat map of attack success for each model and judge."""
    grids, _ = grid_tables.grids(results)
    return [_heat(f"grid-{number}", grid) for number, grid in enumerate(grids, 1) if grid.attacks]


def _heat(name: str, grid: Grid) -> Figure:
    return make_figure(
        name,
        f"Heat map: attack success on {text.label(grid.model, 60)} by attack and defense, judge "
        f"{text.label(grid.judge, 60)}.",
        160 + 46 * len(grid.rows),
        [
            go.Heatmap(
                x=list(range(len(grid.attacks))),
                y=list(range(len(grid.rows))),
                z=[[cell.rate.value if cell and cell.rate else None for cell in row.attacks] for row in grid.rows],
                text=[[_said(cell) for cell in row.attacks] for row in grid.rows],
                texttemplate="%{text}",
                textfont={"size": 11, "color": "#1b1d21"},
                colorscale=_SCALE,
                zmin=0,
                zmax=1,
                showscale=False,
                xgap=2,
                ygap=2,
            )
        ],
        xaxis={
            "tickvals": list(range(len(grid.attacks))),
            "ticktext": [text.label(attack) for attack in grid.attacks],
            "side": "top",
            "showgrid": False,
        },
        yaxis={
            "tickvals": list(range(len(grid.rows))),
            "ticktext": [text.label(row.defense) for row in grid.rows],
            "autorange": "reversed",
            "showgrid": False,
        },
    )


def _said(cell: GridCell | None) -> str:
    if cell is None:
        return ""
    if cell.rate is None:
        return "not run"
    return (
        f"{text.percent(cell.rate.value)}{'*' if cell.marked else ''}<br>{text.interval(cell.rate.low, cell.rate.high)}"
    )
