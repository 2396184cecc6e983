"""The figures of a run's stages: layers, vocabulary, calibration, training, before and after, and the grid."""

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from safety_neurons.core.statistics import Rate
from safety_neurons.core.visible import visible
from safety_neurons.report import evaluation_tables, run_tables, summary, text
from safety_neurons.report.drawing import (
    BLUE,
    GRAY,
    GREEN,
    LAYER_AXIS,
    PURPLE,
    SHARES,
    VERMILION,
    Figure,
    Placed,
    dotted,
    line,
    make_figure,
    markers,
    mode,
    names_axis,
)
from safety_neurons.report.drawing import points as points_of
from safety_neurons.report.record import HARMFUL
from safety_neurons.report.results import LayerScore, MeanScore, RunResults
from safety_neurons.report.scale_curve import ScaleCurve, ValidationPoint
from safety_neurons.report.summary import MEAN, BeforeAfter

# From left to right: fewer refusals, no calibration, more refusals.
_CONDITIONS = ("toward conformity", "none", "toward rejection")
_MOST_POINTS = 500
_MOST_SPOKEN = 24
_ATTACK_LOOK = (VERMILION, "solid", "circle")
_SAFE_LOOKS = ((BLUE, "dot", "square"), (GREEN, "dash", "diamond"), (PURPLE, "dashdot", "triangle-up"))
_HEAT = [[0, "#fdf5ee"], [1, "#e3935a"]]


def figures(results: RunResults) -> list[Figure | None]:
    """Those that the results have data for."""
    lines = summary.by_main_judge(results.evaluation)
    harmful, safe = ([one for one in lines if (one.prompts == HARMFUL) is side] for side in (True, False))
    return [
        _layers(results),
        *(_vocabulary(*one) for one in run_tables.own_scores(results)),
        *(_causes(results, prompts) for prompts in ("harmful", "benign")),
        _before_after("attacks", "share of attacks that succeed", [(one.attack, one) for one in harmful]),
        _before_after("refusals", "share of harmless requests refused", [(one.prompts, one) for one in safe]),
        _loss(results),
        *map(_scales, run_tables.scale_curves(results)),
    ]


def _layers(results: RunResults) -> Figure | None:
    if not results.neurons or not results.neurons.per_layer:
        return None
    layers = results.neurons.per_layer[: run_tables.MOST_LAYERS]
    pattern = {"size": 6, "solidity": 0.3, "fillmode": "overlay", "fgcolor": "#ffffff", "fgopacity": 0.6}
    bars = [
        go.Bar(
            name=f"{side} neurons",
            x=[entry.layer for entry in layers],
            y=[getattr(entry, side) for entry in layers],
            marker={"color": color, "pattern": pattern | {"shape": shape}},
            hovertemplate=f"layer %{{x}}: %{{y:,}} {side}<extra></extra>",
        )
        for side, color, shape in (("rejection", BLUE, ""), ("conformity", VERMILION, "/"))
    ]
    return make_figure(
        "layers",
        "Bars: safety neurons in each layer. " + summary.where(results.neurons),
        320,
        bars,
        barmode="stack",
        bargap=0.18,
        xaxis=LAYER_AXIS,
        yaxis={"title": {"text": "neurons"}, "rangemode": "tozero"},
    )


def _vocabulary(mean: MeanScore, scores: list[LayerScore], lens: dict[int, float]) -> Figure:
    layers = [one.layer for one in scores]
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    band = {"name": "random sets, 95%", "fill": "tonexty", "fillcolor": "rgba(140,140,140,0.3)"}
    traces = [
        go.Scatter(x=layers, y=[one.random_low for one in scores], showlegend=False, **edge),
        go.Scatter(x=layers, y=[one.random_high for one in scores], **band, **edge),
    ]
    lines: list[tuple[str, list[int], list[float], tuple[str, str, str]]] = [
        ("found neurons together", layers, [one.together for one in scores], (BLUE, "solid", "circle")),
        ("one by one, mean", layers, [one.single for one in scores], (GREEN, "dot", "square")),
        ("residual stream", list(lens), list(lens.values()), (VERMILION, "dash", "diamond")),
    ]
    for name, x, y, look in lines:
        if x:
            hover = f"layer %{{x}}, {name}: %{{y:.2f}}<extra></extra>"
            traces.append(line(name, x, y, look, size=6, hovertemplate=hover))
    return make_figure(
        f"vocabulary-{mean.side}",
        f"Lines: how far {mean.lexicon} words stand out in each layer, 0.5 is chance. On average the {mean.side} "
        f"neurons together {text.score(mean.together)}, random sets {text.score(mean.random)}, one by one "
        f"{text.score(mean.single)}, residual stream {text.score(mean.lens)}.",
        380,
        traces,
        xaxis=LAYER_AXIS,
        yaxis={"tickformat": ".2f", "range": [0, 1.02], "tickvals": [0, 0.25, 0.5, 0.75, 1]},
    )


def _causes(results: RunResults, prompts: str) -> Figure | None:
    judge = results.rows[0].judge if results.rows else ""
    rows = [one for one in results.rows if (one.prompts, one.judge) == (prompts, judge) and one.value is not None]
    if not rows:
        return None
    seen = dict.fromkeys(one.condition for one in rows)
    order = [name for name in _CONDITIONS if name in seen] + [name for name in seen if name not in _CONDITIONS]

    def placed(subject: str, shift: float = 0) -> list[Placed]:
        return [(order.index(one.condition) + shift, one.rate) for one in rows if one.subject == subject]

    base, traces = placed("base"), []
    for subject, color, symbol, dash, shift in (
        ("random", GRAY, "circle-open", "dot", 0.05),
        ("found", BLUE, "circle", "solid", -0.05),
    ):
        if own := placed(subject, shift):
            # The base model is the middle of both lines: both directions start from it.
            ends = sorted([*own, *base], key=lambda point: point[0])
            x, y = [place for place, _ in ends], [rate.value for _, rate in ends]
            look = {"color": color, "width": 2, "dash": dash}
            traces.append(go.Scatter(x=x, y=y, mode="lines", line=look, hoverinfo="skip", showlegend=False))
            traces.append(markers(subject, own, color, symbol))
    if base:
        traces.append(markers("base", base, VERMILION, "diamond"))
    names = [text.label({"none": "not calibrated"}.get(name, name)) for name in order]
    return make_figure(
        f"causes-{prompts}",
        f"Points with intervals: share of {prompts} prompts refused. "
        + _in_words([(f"{one.subject}, {one.condition}", one.rate) for one in rows]),
        340,
        traces,
        xaxis={
            "tickvals": list(range(len(order))),
            "ticktext": [name.replace(" ", "<br>", 1) for name in names],
            "range": [-0.4, len(order) - 0.6],
            "showgrid": False,
        },
        yaxis=SHARES,
    )


def _in_words(rates: Sequence[tuple[str, Rate]]) -> str:
    said = [f"{visible(name, 80)}: {text.percent(rate.value)}" for name, rate in rates[:_MOST_SPOKEN]]
    return "; ".join(said) + "."


def _before_after(name: str, what: str, lines: list[tuple[str, BeforeAfter]]) -> Figure | None:
    order = [line for line, one in lines if one.values != (None, None)]
    if not order:
        return None
    traces, said = [], []
    sides = (("before", "base", GRAY, "circle-open", -0.11), ("after", "tuned", BLUE, "circle", 0.11))
    for side, model, color, symbol, shift in sides:
        rates = [(line, rate) for line, one in lines if (rate := getattr(one, model)) and rate.value is not None]
        said += [(f"{line}, {side}", rate) for line, rate in rates]
        placed = [(order.index(line) + shift, rate) for line, rate in rates]
        if placed:
            traces.append(markers(side, placed, color, symbol, horizontal=True))
    return make_figure(
        name,
        f"Points with intervals: {what}. " + _in_words(said),
        90 + 52 * len(order),
        traces,
        xaxis=SHARES,
        yaxis=names_axis([{MEAN: "mean of the attacks"}.get(entry, entry) for entry in order]),
    )


def _loss(results: RunResults) -> Figure | None:
    losses = [entry for entry in (results.training.loss if results.training else []) if entry.loss is not None]
    if not losses:
        return None
    shown, first, last = _thinned(losses), losses[0], losses[-1]
    curve = go.Scatter(
        x=[entry.step for entry in shown],
        y=[entry.loss for entry in shown],
        mode=mode(shown),
        line={"color": BLUE, "width": 2},
        hovertemplate="step %{x}: loss %{y:.3f}<extra></extra>",
        showlegend=False,
    )
    return make_figure(
        "loss",
        f"Line: training loss, {first.loss:.2f} at step {first.step}, {last.loss:.2f} at step {last.step}.",
        260,
        [curve],
        xaxis={"title": {"text": "step"}, "showgrid": False},
        yaxis={"title": {"text": "loss"}, "rangemode": "tozero"},
    )


def _scales(curve: ScaleCurve) -> Figure | None:
    """Attack success and refusals over the scale: lines for the last pass, markers for earlier ones."""
    last = max(point.epoch for point in curve.points)
    points = curve.points[:_MOST_POINTS]
    rates: list[tuple[str, Callable[[ValidationPoint], Rate | None]]] = [
        ("attacks succeed", lambda point: point.attack_success),
        *((f"{name} refused", _refused(name)) for name in list(curve.base.shares)[: len(_SAFE_LOOKS)]),
    ]
    traces = []
    for (name, rate_of), look in zip(rates, (_ATTACK_LOOK, *_SAFE_LOOKS), strict=False):
        own = [(0.0, rate_of(curve.base))]
        own += [(point.scale, rate_of(point)) for point in points if point.epoch == last and rate_of(point)]
        own.sort(key=lambda one: one[0])
        earlier = [(point, rate) for point in points if point.epoch != last and (rate := rate_of(point))]
        traces.append(
            line(
                text.label(name, 40),
                [scale for scale, _ in own],
                [rate.value for _, rate in own if rate],
                look,
                cliponaxis=False,
                hovertext=[
                    f"scale {scale:g}, {text.label(name, 40)}: {text.spoken(rate)}" for scale, rate in own if rate
                ],
                hoverinfo="text",
            )
        )
        if earlier:
            said = [
                f"pass {point.epoch}, scale {point.scale:g}, {text.label(name, 40)}: {text.spoken(rate)}"
                for point, rate in earlier
            ]
            marker = {"color": look[0], "symbol": f"{look[2]}-open", "size": 7}
            trace = points_of(
                text.label(name, 40),
                [one.scale for one, _ in earlier],
                [rate.value for _, rate in earlier],
                said,
                marker,
            )
            traces.append(trace.update(showlegend=False))
    selected = curve.selection
    return make_figure(
        f"scale-{'random' if curve.subject == 'random' else 'found'}",
        f"Lines over the scale of the delta, {visible(curve.subject, 40)} neurons: attack success and refusals on "
        f"validation prompts. {summary.selection(curve)}",
        300,
        traces,
        xaxis={"title": {"text": f"scale (lines: pass {last})"}, "showgrid": False, "rangemode": "tozero"},
        yaxis=SHARES,
        shapes=[dotted("x", selected.scale)],
    )


def _refused(name: str) -> Callable[[ValidationPoint], Rate | None]:
    return lambda point: point.shares.get(name)


def _thinned(entries: list[Any]) -> list[Any]:
    """A long training has more steps than a figure has pixels."""
    shown = entries[:: -(-len(entries) // _MOST_POINTS)]
    return shown if shown[-1] is entries[-1] else [*shown, entries[-1]]


def grids(results: RunResults) -> list[Figure]:
    """The grids as heat maps, for files; on the page they are tables."""
    found = evaluation_tables.grids(results.evaluation) if results.evaluation else []
    return [_heat(f"grid-{number}", one) for number, one in enumerate(found, 1) if len(one.cells.columns) > 1]


def _heat(name: str, grid: evaluation_tables.Grid) -> Figure:
    attacks = [column.name for column in grid.cells.columns[1:]]
    rows = [(one.cells[0].value, one.cells[1:]) for one in grid.cells.rows]
    return make_figure(
        name,
        f"Heat map: attack success on {text.label(grid.model, 60)} by attack and defense, judge "
        f"{text.label(grid.judge, 60)}.",
        160 + 46 * len(rows),
        [
            go.Heatmap(
                x=list(range(len(attacks))),
                y=list(range(len(rows))),
                z=[[cell.shade for cell in cells] for _, cells in rows],
                text=[[f"{cell.value}<br>{cell.detail}".removesuffix("<br>") for cell in cells] for _, cells in rows],
                texttemplate="%{text}",
                textfont={"size": 11, "color": "#1b1d21"},
                colorscale=_HEAT,
                zmin=0,
                zmax=1,
                showscale=False,
                xgap=2,
                ygap=2,
            )
        ],
        xaxis={
            "tickvals": list(range(len(attacks))),
            "ticktext": [text.label(attack) for attack in attacks],
            "side": "top",
            "showgrid": False,
        },
        yaxis={
            "tickvals": list(range(len(rows))),
            "ticktext": [text.label(defense) for defense, _ in rows],
            "autorange": "reversed",
            "showgrid": False,
        },
    )
