"""What all figures share: colors, the frame, and markers with intervals. Colors of text and grid come from the page's
CSS, so that they follow the reader's theme and the printer; colors of data are from Okabe and Ito's color-blind-safe
set and fit both themes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from safety_neurons.report import rates, text
from safety_neurons.report.rates import Rate

BLUE, VERMILION, GREEN, PURPLE, GRAY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C8C8C"
# An axis of shares, the same for all figures.
SHARES: dict[str, Any] = {"tickformat": ".0%", "range": [-0.03, 1.04], "tickvals": [0, 0.25, 0.5, 0.75, 1]}
# A row of the results and where it stands on the axis of names.
Placed = tuple[float, dict[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A figure's name on the page, what it says in words, and what Plotly draws."""

    name: str
    alternative: str
    height: int
    specification: dict[str, Any]


def make_figure(name: str, alternative: str, height: int, traces: list[Any], **layout: Any) -> Figure:
    plot = go.Figure(data=traces)
    plot.update_layout(
        height=height,
        autosize=True,
        margin={"l": 48, "r": 16, "t": 36, "b": 36},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        hoverlabel={"bgcolor": "#222", "bordercolor": "#222", "font": {"color": "#fff"}},
        dragmode=False,
        **layout,
    )
    # Fixed axes leave scrolling on a phone to the page.
    title = {"font": {"size": 13}}
    plot.update_xaxes(fixedrange=True, zeroline=False, automargin=True, title=title)
    plot.update_yaxes(fixedrange=True, zeroline=False, automargin=True, title=title)
    specification = plot.to_plotly_json()
    specification["layout"].pop("template", None)
    return Figure(name, alternative, height, specification)


def place(rows: list[dict[str, Any]], field: str, order: list[str], shift: float = 0) -> list[Placed]:
    return [(order.index(str(row.get(field))) + shift, row) for row in rows]


def spoken(one: Rate) -> str:
    return f"{text.percent(one.value)} ({text.interval(one.low, one.high)}), n = {one.n:,}, unscored {one.unscored:,}"


def markers(
    name: str,
    placed: list[Placed],
    color: str,
    symbol: str,
    horizontal: bool = False,
    say: Callable[[Rate], str] = spoken,
) -> Any:
    """Markers with interval bars."""
    measured = [rates.rate(row) for _, row in placed]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [_reach(one, one.high) for one in measured],
        "arrayminus": [_reach(one, one.low) for one in measured],
        "color": color,
        "thickness": 1.6,
        "width": 4,
    }
    along, across = ("x", "y") if horizontal else ("y", "x")
    return go.Scatter(
        **{along: [one.value for one in measured], across: [place for place, _ in placed], f"error_{along}": bars},
        name=text.label(name, 40),
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": 10, "line": {"color": color, "width": 2}},
        # The found neurons are drawn last, above the others, and named first.
        legendrank=1 if name == "found" else 2,
        hovertext=[f"{text.label(name, 40)}: {say(one)}" for one in measured],
        hoverinfo="text",
    )


def _reach(one: Rate, end: float | None) -> float:
    # Rounding can put an end of the interval a hair on the wrong side of the value; Plotly would draw it backwards.
    return 0.0 if end is None or one.value is None else abs(end - one.value)
