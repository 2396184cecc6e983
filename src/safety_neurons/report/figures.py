"""The figures as Plotly specifications."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from safety_neurons.report import causal_figures, clouds, neuron_map, rates, text, tuning_figures
from safety_neurons.report.drawing import (
    BLUE,
    GRAY,
    GREEN,
    PURPLE,
    SHARES,
    VERMILION,
    Figure,
    make_figure,
    markers,
    place,
)
from safety_neurons.report.summary import where
from safety_neurons.report.tables import vocabulary_sides

# The order that a student reads from left to right: fewer refusals, as it is, more refusals.
_CONDITIONS = ("toward conformity", "none", "toward rejection")


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """Every figure that the results have data for."""
    makers: list[Callable[[dict[str, Any]], Figure | None]] = [
        _layers,
        *(functools.partial(_vocabulary, side=side) for side in ("rejection", "conformity")),
        lambda all_results: _causes(all_results, "harmful"),
        lambda all_results: _causes(all_results, "benign"),
        _attacks,
        _refusals,
    ]
    made = [maker(results) for maker in makers]
    for section in (neuron_map, causal_figures, clouds, tuning_figures):
        made += section.figures(results)
    return {figure.name: figure for figure in made if figure}


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
            marker={"color": color, "pattern": pattern | {"shape": shape}},
            hovertemplate=f"layer %{{x}}: %{{y:,}} {side}<extra></extra>",
        )
        for side, color, shape in (("rejection", BLUE, ""), ("conformity", VERMILION, "/"))
    ]
    return make_figure(
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
        ("residual stream", list(one.lens), list(one.lens.values()), VERMILION, "dash", "diamond"),
    ]
    for name, x, y, color, dash, symbol in lines:
        if x:
            traces.append(
                go.Scatter(
                    x=x,
                    y=y,
                    name=name,
                    mode="lines+markers",
                    line={"color": color, "width": 2, "dash": dash},
                    marker={"color": color, "symbol": symbol, "size": 6},
                    hovertemplate=f"layer %{{x}}, {name}: %{{y:.2f}}<extra></extra>",
                )
            )
    return make_figure(
        f"vocabulary-{side}",
        f"Lines: how far {one.lexicon} words stand out in each layer, 0.5 is chance. On average the {side} neurons "
        f"together {text.score(one.overall['together'])}, random sets {text.score(one.overall['random'])}, one by one "
        f"{text.score(one.overall['single'])}, residual stream {text.score(one.overall['lens'])}.",
        380,
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
    base = place(rates.select(rows, subject="base"), "condition", order)
    traces = []
    for subject, name, color, symbol, dash, shift in (
        ("random", "random", GRAY, "circle-open", "dot", 0.05),
        ("found", "found", BLUE, "circle", "solid", -0.05),
    ):
        own = place(rates.select(rows, subject=subject), "condition", order, shift)
        if not own:
            continue
        # The base model is the middle of both lines: it is what either push starts from.
        points = sorted(own + base, key=lambda point: point[0])
        line = {"color": color, "width": 2, "dash": dash}
        x, y = [place for place, _ in points], [row["value"] for _, row in points]
        traces.append(go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False))
        traces.append(markers(name, own, color, symbol))
    if base:
        traces.append(markers("base", base, VERMILION, "diamond"))
    names = {"none": "no push"}
    return make_figure(
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
        yaxis=SHARES,
    )


def _in_words(rows: list[dict[str, Any]], *fields: str) -> str:
    said = [f"{', '.join(str(row.get(f)) for f in fields)}: {text.percent(row.get('value'))}" for row in rows[:24]]
    return text.visible("; ".join(said) + ".")


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
    others = itertools.cycle([(VERMILION, "square"), (GREEN, "diamond"), (PURPLE, "cross")])
    spread = 0.22 if len(arms) < 3 else 0.5 / (len(arms) - 1)
    traces = []
    for number, arm in enumerate(arms):
        own = [row for row in rows if rates.arm(row) == arm]
        color, symbol = (GRAY, "circle-open") if arm.base else (BLUE, "circle") if arm.tuned else next(others)
        placed = place(own, field, order, (number - (len(arms) - 1) / 2) * spread)
        traces.append(markers(arm.label, placed, color, symbol, horizontal=True))
    height = 90 + (24 + 14 * len(arms)) * len(order)
    return make_figure(
        name,
        f"Points with intervals: {what}. " + _in_words(rows, field, "condition"),
        height,
        traces,
        xaxis=SHARES,
        yaxis={
            "tickvals": list(range(len(order))),
            "ticktext": [text.label({"mean": "mean of the attacks"}.get(entry, entry)) for entry in order],
            "range": [len(order) - 0.5, -0.5],
            "showgrid": False,
        },
    )
