"""The figures as Plotly specifications. Colours of text and grid come from the page's CSS, so that they follow the
reader's theme and the printer; colours of data are from Okabe and Ito's colour-blind-safe set and fit both themes."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from safety_neurons.report import rates, text
from safety_neurons.report.rates import Rate
from safety_neurons.report.summary import where
from safety_neurons.report.tables import vocabulary_sides

BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C8C8C"
# The order that a student reads from left to right: fewer refusals, as it is, more refusals.
_CONDITIONS = ("toward conformity", "none", "toward rejection")
_LOSS_POINTS = 500

# A row of the results and where it stands on the axis of names.
Placed = tuple[float, dict[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A figure's name on the page, what it says in words, and what Plotly draws."""

    name: str
    alternative: str
    height: int
    specification: dict[str, Any]


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """Every figure that the results have data for."""
    makers: list[Callable[[dict[str, Any]], Figure | None]] = [
        _layers,
        *(functools.partial(_vocabulary, side=side) for side in ("rejection", "conformity")),
        lambda all_results: _causes(all_results, "harmful"),
        lambda all_results: _causes(all_results, "benign"),
        _loss,
        _attacks,
        _refusals,
    ]
    made = [maker(results) for maker in makers]
    return {figure.name: figure for figure in made if figure}


def _figure(name: str, alternative: str, height: int, traces: list[Any], **layout: Any) -> Figure:
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
    plot.update_xaxes(fixedrange=True, zeroline=False, automargin=True)
    plot.update_yaxes(fixedrange=True, zeroline=False, automargin=True)
    specification = plot.to_plotly_json()
    specification["layout"].pop("template", None)
    return Figure(name, alternative, height, specification)


def _layers(results: dict[str, Any]) -> Figure | None:
    neurons = results.get("neurons") or {}
    layers = neurons.get("per_layer") or []
    if not layers:
        return None
    numbers = [entry["layer"] for entry in layers]
    pattern = {"size": 6, "solidity": 0.3, "fillmode": "overlay", "fgcolor": "#ffffff", "fgopacity": 0.6}
    bars = [
        go.Bar(
            name=f"{side} neurons",
            x=numbers,
            y=[entry[side] for entry in layers],
            marker={"color": colour, "pattern": pattern | {"shape": shape}},
            hovertemplate=f"layer %{{x}}: %{{y:,}} {side}<extra></extra>",
        )
        for side, colour, shape in (("rejection", BLUE, ""), ("conformity", VERMILLION, "/"))
    ]
    return _figure(
        "layers",
        "Bars: safety neurons in each layer. " + where(neurons),
        320,
        bars,
        barmode="stack",
        bargap=0.18,
        xaxis={"title": {"text": "layer (0 is next to the input)"}, "showgrid": False},
        yaxis={"title": {"text": "neurons"}, "rangemode": "tozero"},
    )


def _vocabulary(results: dict[str, Any], side: str) -> Figure | None:
    one = next((found for found in vocabulary_sides(results) if found.side == side), None)
    if one is None:
        return None
    layers = [score["layer"] for score in one.scores]
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    traces = [
        go.Scatter(x=layers, y=[score["random_low"] for score in one.scores], showlegend=False, **edge),
        go.Scatter(
            x=layers,
            y=[score["random_high"] for score in one.scores],
            name="random sets, 95%",
            fill="tonexty",
            fillcolor="rgba(140,140,140,0.3)",
            **edge,
        ),
    ]
    lines = [
        ("found neurons together", layers, [score["together"] for score in one.scores], BLUE, "solid", "circle"),
        ("one by one, mean", layers, [score["single"] for score in one.scores], GREEN, "dot", "square"),
        ("residual stream", list(one.lens), list(one.lens.values()), VERMILLION, "dash", "diamond"),
    ]
    for name, x, y, colour, dash, symbol in lines:
        if x:
            traces.append(
                go.Scatter(
                    x=x,
                    y=y,
                    name=name,
                    mode="lines+markers",
                    line={"color": colour, "width": 2, "dash": dash},
                    marker={"color": colour, "symbol": symbol, "size": 6},
                    hovertemplate=f"layer %{{x}}, {name}: %{{y:.2f}}<extra></extra>",
                )
            )
    return _figure(
        f"vocabulary-{side}",
        f"Lines: how far {one.lexicon} words stand out in each layer, 0.5 is chance. On average the {side} neurons "
        f"together {text.score(one.overall['together'])}, random sets {text.score(one.overall['random'])}, one by one "
        f"{text.score(one.overall['single'])}, residual stream {text.score(one.overall['lens'])}.",
        340,
        traces,
        xaxis={"title": {"text": "layer (0 is next to the input)"}, "showgrid": False},
        yaxis={"tickformat": ".2f", "range": [0, 1.02], "tickvals": [0, 0.25, 0.5, 0.75, 1]},
    )


def _causes(results: dict[str, Any], prompts: str) -> Figure | None:
    rows = rates.select(rates.main_judge(results["rows"], "calibrate"), metric=rates.REFUSED, prompts=prompts)
    rows = [row for row in rows if row.get("value") is not None]
    if not rows:
        return None
    seen = dict.fromkeys(str(row.get("condition")) for row in rows)
    order = [name for name in _CONDITIONS if name in seen] + [name for name in seen if name not in _CONDITIONS]
    untouched = _placed(rates.select(rows, subject="untouched"), "condition", order)
    traces = []
    for subject, name, colour, symbol, dash, shift in (
        ("random", "random", GREY, "circle-open", "dot", 0.05),
        ("found", "found", BLUE, "circle", "solid", -0.05),
    ):
        own = _placed(rates.select(rows, subject=subject), "condition", order, shift)
        if not own:
            continue
        # The untouched model is the middle of both lines: it is what either push starts from.
        points = sorted(own + untouched, key=lambda point: point[0])
        line = {"color": colour, "width": 2, "dash": dash}
        x, y = [place for place, _ in points], [row["value"] for _, row in points]
        traces.append(go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False))
        traces.append(_points(name, own, colour, symbol))
    if untouched:
        traces.append(_points("untouched", untouched, VERMILLION, "diamond"))
    names = {"none": "no push"}
    return _figure(
        f"causes-{prompts}",
        f"Points with intervals: share of {prompts} prompts refused. " + _in_words(rows, "subject", "condition"),
        340,
        traces,
        xaxis={
            "tickvals": list(range(len(order))),
            "ticktext": [label.replace(" ", "<br>", 1) for label in (text.label(names.get(n, n)) for n in order)],
            "range": [-0.4, len(order) - 0.6],
            "showgrid": False,
        },
        yaxis={"tickformat": ".0%", "range": [-0.02, 1.04], "tickvals": [0, 0.25, 0.5, 0.75, 1]},
    )


def _placed(rows: list[dict[str, Any]], field: str, order: list[str], shift: float = 0) -> list[Placed]:
    return [(order.index(str(row.get(field))) + shift, row) for row in rows]


def _points(name: str, placed: list[Placed], colour: str, symbol: str, horizontal: bool = False) -> Any:
    """Markers with interval bars."""
    measured = [rates.rate(row) for _, row in placed]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [_reach(one, one.high) for one in measured],
        "arrayminus": [_reach(one, one.low) for one in measured],
        "color": colour,
        "thickness": 1.6,
        "width": 4,
    }
    along, across = ("x", "y") if horizontal else ("y", "x")
    return go.Scatter(
        **{along: [one.value for one in measured], across: [place for place, _ in placed], f"error_{along}": bars},
        name=text.label(name, 40),
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 10, "line": {"color": colour, "width": 2}},
        # The found neurons are drawn last, above the others, and named first.
        legendrank=1 if name == "found" else 2,
        hovertext=[f"{text.label(name, 40)}: {_spoken(one)}" for one in measured],
        hoverinfo="text",
    )


def _reach(one: Rate, end: float | None) -> float:
    # Rounding can put an end of the interval a hair on the wrong side of the value; Plotly would draw it backwards.
    return 0.0 if end is None or one.value is None else abs(end - one.value)


def _spoken(one: Rate) -> str:
    return f"{text.percent(one.value)} ({text.interval(one.low, one.high)}), n = {one.n:,}, unscored {one.unscored:,}"


def _in_words(rows: list[dict[str, Any]], *fields: str) -> str:
    said = [f"{', '.join(str(row.get(f)) for f in fields)}: {text.percent(row.get('value'))}" for row in rows[:24]]
    return text.visible("; ".join(said) + ".")


def _loss(results: dict[str, Any]) -> Figure | None:
    losses = [entry for entry in (results.get("training") or {}).get("loss") or [] if entry.get("loss") is not None]
    if not losses:
        return None
    # A long training has more steps than the figure has pixels.
    stride = -(-len(losses) // _LOSS_POINTS)
    shown = losses[::stride]
    if shown[-1] is not losses[-1]:
        shown.append(losses[-1])
    curve = go.Scatter(
        x=[entry["step"] for entry in shown],
        y=[entry["loss"] for entry in shown],
        mode="lines+markers" if len(shown) <= 40 else "lines",
        line={"color": BLUE, "width": 2},
        hovertemplate="step %{x}: loss %{y:.3f}<extra></extra>",
        showlegend=False,
    )
    return _figure(
        "loss",
        f"Line: training loss, {losses[0]['loss']:.2f} at step {losses[0]['step']}, {losses[-1]['loss']:.2f} at step "
        f"{losses[-1]['step']}.",
        260,
        [curve],
        xaxis={"title": {"text": "step"}, "showgrid": False},
        yaxis={"title": {"text": "loss"}, "rangemode": "tozero"},
    )


def _attacks(results: dict[str, Any]) -> Figure | None:
    rows = rates.select(rates.main_judge(results["rows"], "evaluate"), metric=rates.ATTACK_SUCCESS)
    return _before_after("attacks", "share of attacks that succeed", rows, "attack")


def _refusals(results: dict[str, Any]) -> Figure | None:
    rows = rates.select(rates.main_judge(results["rows"], "evaluate"), metric=rates.REFUSED)
    return _before_after("refusals", "share of harmless requests refused", rows, "prompts")


def _before_after(name: str, what: str, rows: list[dict[str, Any]], field: str) -> Figure | None:
    rows = [row for row in rows if row.get("value") is not None]
    if not rows:
        return None
    order = list(dict.fromkeys(str(row.get(field)) for row in rows))
    arms = rates.arms(rows)
    # The two arms that the page is about look the same in every run, however many others there are.
    others = itertools.cycle([(VERMILLION, "square"), (GREEN, "diamond"), (PURPLE, "cross")])
    spread = 0.22 if len(arms) < 3 else 0.5 / (len(arms) - 1)
    traces = []
    for place, arm in enumerate(arms):
        own = [row for row in rows if rates.arm(row) == arm]
        colour, symbol = (GREY, "circle-open") if arm.untouched else (BLUE, "circle") if arm.tuned else next(others)
        placed = _placed(own, field, order, (place - (len(arms) - 1) / 2) * spread)
        traces.append(_points(arm.label, placed, colour, symbol, horizontal=True))
    height = 90 + (24 + 14 * len(arms)) * len(order)
    return _figure(
        name,
        f"Points with intervals: {what}. " + _in_words(rows, field, "condition"),
        height,
        traces,
        xaxis={"tickformat": ".0%", "range": [-0.02, 1.04], "tickvals": [0, 0.25, 0.5, 0.75, 1]},
        yaxis={
            "tickvals": list(range(len(order))),
            "ticktext": [text.label({"mean": "mean of the attacks"}.get(entry, entry)) for entry in order],
            "range": [len(order) - 0.5, -0.5],
            "showgrid": False,
        },
    )
