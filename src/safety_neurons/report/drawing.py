"""What all figures share: colors, the frame, and markers with intervals. Colors of text and grid come from the page's
CSS, so that they follow the reader's theme and the printer; colors of data are from Okabe and Ito's color-blind-safe
set and fit both themes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from safety_neurons.core.statistics import Rate
from safety_neurons.core.visible import visible
from safety_neurons.report import text

BLUE, VERMILION, GREEN, PURPLE, GRAY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C8C8C"
# An axis of shares, the same for all figures.
SHARES: dict[str, Any] = {"tickformat": ".0%", "range": [-0.03, 1.04], "tickvals": [0, 0.25, 0.5, 0.75, 1]}
LAYER_AXIS: dict[str, Any] = {"title": {"text": "layer (0 is next to the input)"}, "showgrid": False}
DOTTED: dict[str, Any] = {"type": "line", "layer": "below", "line": {"color": GRAY, "width": 1, "dash": "dot"}}
# More points than this on a line are drawn as a line only.
_MOST_MARKERS = 40
# Characters of a figure's text alternative.
_MOST_SPOKEN = 8000
# A rate and its place on the axis of names.
Placed = tuple[float, Rate]


@dataclass(frozen=True)
class Figure:
    """A figure's name on the page, its text alternative, and what Plotly draws."""

    name: str
    alternative: str
    height: int
    specification: dict[str, Any]


def make_figure(name: str, alternative: str, height: int, traces: Sequence[Any], **layout: Any) -> Figure:
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
    return Figure(name, visible(alternative, _MOST_SPOKEN), height, text.drawn(specification))


def names_axis(names: Sequence[str]) -> dict[str, Any]:
    """A vertical axis of names, the first on top."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [text.label(name) for name in names],
        "range": [len(names) - 0.5, -0.5],
        "showgrid": False,
    }


def dotted(along: str, value: float) -> dict[str, Any]:
    """A line through the whole figure at one value of one axis."""
    across = "y" if along == "x" else "x"
    return DOTTED | {f"{along}0": value, f"{along}1": value, f"{across}0": 0, f"{across}1": 1, f"{across}ref": "paper"}


def mode(points: Sequence[Any]) -> str:
    return "lines+markers" if len(points) <= _MOST_MARKERS else "lines"


def line(
    name: str, x: Sequence[Any], y: Sequence[Any], look: tuple[str, str, str], size: int = 7, **options: Any
) -> Any:
    """A line with markers, where they are not too many; `look` is color, dash and symbol."""
    color, dash, symbol = look
    return go.Scatter(
        x=x,
        y=y,
        name=name,
        mode=mode(x),
        line={"color": color, "width": 2, "dash": dash},
        marker={"color": color, "symbol": symbol, "size": size},
        **options,
    )


def points(name: str, x: Sequence[Any], y: Sequence[Any], said: Sequence[str], marker: dict[str, Any]) -> Any:
    """Markers with a sentence for each."""
    return go.Scatter(
        x=x, y=y, name=name, mode="markers", marker=marker, cliponaxis=False, hovertext=said, hoverinfo="text"
    )


def markers(
    name: str,
    placed: Sequence[Placed],
    color: str,
    symbol: str,
    horizontal: bool = False,
    say: Callable[[Rate], str] = text.spoken,
) -> Any:
    """Markers with interval bars."""
    rates = [rate for _, rate in placed]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [_reach(one, one.high) for one in rates],
        "arrayminus": [_reach(one, one.low) for one in rates],
        "color": color,
        "thickness": 1.6,
        "width": 4,
    }
    along, across = ("x", "y") if horizontal else ("y", "x")
    return go.Scatter(
        **{along: [one.value for one in rates], across: [place for place, _ in placed], f"error_{along}": bars},
        name=text.label(name, 40),
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": 10, "line": {"color": color, "width": 2}},
        # The found neurons are drawn last, above the others, and named first.
        legendrank=1 if name == "found" else 2,
        hovertext=[f"{text.label(name, 40)}: {say(one)}" for one in rates],
        hoverinfo="text",
    )


def _reach(one: Rate, end: float | None) -> float:
    # Rounding can put an end of the interval a hair on the wrong side of the value; Plotly would draw it backwards.
    return 0.0 if end is None or one.value is None else abs(end - one.value)
