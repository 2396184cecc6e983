"""The figures of the dose-response, the search for the smallest push, and the guard, as Plotly specifications."""

import itertools
import math
from typing import Any

import plotly.graph_objects as go

from safety_neurons.report import causal_tables, rates, text
from safety_neurons.report.causal_tables import Trial
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
from safety_neurons.report.rates import Rate

_SYMBOLS = ("circle-open", "square-open", "triangle-up-open", "x-thin-open")
_DASHES = ("dot", "dash", "dashdot", "longdash")
# More points than this on a line are a line.
_MOST_MARKERS = 40
# Panels from the top: what of a row, its name on the axis, and the part of the figure's height that it has.
_PANELS = (("refused", "refused", [0.5, 1]), ("broken", "broken", [0.26, 0.42]), ("kl_divergence", "KL", [0, 0.18]))
_PERCENTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_MOST_SPOKEN = 24
# Where a set of neurons is as small as a set can be drawn on an axis without a zero.
_SMALLEST = 1e-6


def figures(results: dict[str, Any]) -> list[Figure | None]:
    """Those that the results have data for."""
    return [*(_doses(results, prompts) for prompts in causal_tables.SIDES), *_trials(results), _detectors(results)]


def _doses(results: dict[str, Any], prompts: str) -> Figure | None:
    rows = causal_tables.dose_rows(results)
    own = [row for row in rows if row["prompts"] == prompts]
    if not own:
        return None
    subjects = causal_tables.pushed_subjects(rows)
    base = rates.select(own, subject="base")
    styles = dict(
        zip((one for one in subjects if one != "found"), itertools.cycle(zip(_SYMBOLS, _DASHES, strict=True)))
    )
    traces: list[Any] = []
    # The found neurons are drawn last, above the others.
    for subject in sorted(subjects, key=lambda one: one == "found"):
        color, (symbol, dash) = (BLUE, ("circle", "solid")) if subject == "found" else (GRAY, styles[subject])
        # The base model is where both halves of a line meet.
        line = sorted(rates.select(own, subject=subject) + base, key=lambda row: row["alpha"])
        for panel, (measure, _, _) in enumerate(_PANELS):
            if subject == "found":
                traces += _band(line, measure, _axis(panel))
            traces.append(
                go.Scatter(
                    x=[row["alpha"] for row in line],
                    y=[row[measure]["value"] for row in line],
                    yaxis=_axis(panel),
                    name=text.label(causal_tables.subject(subject), 40),
                    legendrank=1 if subject == "found" else 2,
                    showlegend=panel == 0,
                    mode="lines+markers" if len(line) <= _MOST_MARKERS else "lines",
                    line={"color": color, "width": 2, "dash": dash},
                    marker={"color": color, "symbol": symbol, "size": 7},
                    cliponaxis=False,
                    hovertext=[_cell(row, measure) for row in line],
                    hoverinfo="text",
                )
            )
    if base:
        for panel, (measure, _, _) in enumerate(_PANELS):
            traces.append(_base(base[0], measure, panel))
    # Both sets of prompts on one scale, so that the two figures can be compared.
    furthest = max((row["kl_divergence"]["high"] or row["kl_divergence"]["value"] or 0 for row in rows), default=0)
    scales = (
        SHARES,
        SHARES | {"tickvals": [0, 0.5, 1]},
        {"range": [-0.03 * furthest, 1.08 * furthest or 1], "nticks": 4},
    )
    axes = {
        _axis(panel).replace("y", "yaxis"): scale | {"domain": domain, "title": {"text": name, "font": {"size": 13}}}
        for panel, (scale, (_, name, domain)) in enumerate(zip(scales, _PANELS, strict=True))
    }
    return make_figure(
        f"doses-{prompts}",
        f"Lines over alpha, below 0 toward rejection, above 0 toward conformity: {prompts} prompts refused, broken "
        f"answers, and KL to the base model. Refused: {_doses_in_words(own, subjects)}.",
        540,
        traces,
        xaxis={
            "title": {"text": "← rejection | alpha | conformity →", "font": {"size": 13}},
            "anchor": "y3",
            "showgrid": False,
        },
        shapes=[_dotted("x", "y", 0)],
        **axes,
    )


def _axis(panel: int) -> str:
    return f"y{panel + 1}" if panel else "y"


def _band(line: list[dict[str, Any]], measure: str, axis: str) -> list[Any]:
    """The 95% interval of a line; where there is none, it is as narrow as the line."""
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "yaxis": axis}
    x = [row["alpha"] for row in line]

    def side(name: str) -> list[float | None]:
        return [row[measure]["value"] if row[measure][name] is None else row[measure][name] for row in line]

    return [
        go.Scatter(x=x, y=side("low"), **edge),
        go.Scatter(x=x, y=side("high"), fill="tonexty", fillcolor="rgba(0,114,178,0.22)", **edge),
    ]


def _base(row: dict[str, Any], measure: str, panel: int) -> Any:
    return go.Scatter(
        x=[row["alpha"]],
        y=[row[measure]["value"]],
        yaxis=_axis(panel),
        name="base",
        legendrank=3,
        showlegend=panel == 0,
        mode="markers",
        marker={"color": VERMILION, "symbol": "diamond", "size": 9},
        cliponaxis=False,
        hovertext=[_cell(row, measure)],
        hoverinfo="text",
    )


def _cell(row: dict[str, Any], measure: str) -> str:
    """A point in words."""
    found, name = row[measure], text.label(causal_tables.subject(row["subject"]), 40)
    alpha = f"alpha {causal_tables.alpha(row['alpha'])}"
    used = causal_tables.used_alpha(row)
    if used is not None:
        alpha += f" ({used:.3g} on these neurons)"
    if measure == "kl_divergence":
        return f"{name}, {alpha}: KL {text.nats(found['value'])}"
    share = f"{text.percent(found['value'])} ({text.interval(found['low'], found['high'])})"
    return f"{name}, {alpha}: {share} {measure}, n = {row['n']:,}"


def _doses_in_words(rows: list[dict[str, Any]], subjects: list[str]) -> str:
    said = []
    for name in ["base", *subjects]:
        own = rates.select(rows, subject=name)
        shown = own[:: -(-len(own) // _MOST_SPOKEN) or 1]
        cells = [f"{causal_tables.alpha(row['alpha'])}: {text.percent(row['refused']['value'])}" for row in shown]
        said.append(f"{text.visible(causal_tables.subject(name), 40)} at alpha {', '.join(cells)}")
    return "; ".join(said)


def _trials(results: dict[str, Any]) -> list[Figure]:
    return [
        _one_direction(number, direction, one["trials"], one["chosen"], causal_tables.searched(results)["limits"])
        for number, (direction, one) in enumerate(causal_tables.directions(results), 1)
        if one["trials"]
    ]


def _one_direction(
    number: int, direction: causal_tables.Direction, tried: list[Trial], chosen: Trial, limits: dict[str, float]
) -> Figure:
    others = [trial for trial in tried if trial != chosen]
    kept = [trial for trial in others if causal_tables.keeps(trial, limits)]
    left = [trial for trial in others if not causal_tables.keeps(trial, limits)]
    traces = [
        go.Scatter(
            x=[max(trial["percent"], _SMALLEST) for trial in trials],
            y=[trial["moved"] for trial in trials],
            name=name,
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": size, "line": {"color": color, "width": 1.5}},
            cliponaxis=False,
            hovertext=[_trial(trial, direction.verb) for trial in trials],
            hoverinfo="text",
        )
        for name, trials, color, symbol, size in (
            ("tried", kept, BLUE, "circle", 8),
            ("beyond the limits", left, GRAY, "circle-open", 8),
            ("chosen", [chosen], VERMILION, "diamond", 14),
        )
        if trials
    ]
    ends = [math.log10(max(trial["percent"], _SMALLEST)) for trial in (*tried, chosen)]
    return make_figure(
        f"search-{number}",
        f"Points: share of {text.visible(direction.moving, 40)} prompts {direction.verb} over the size of the set, for "
        f"{len(tried):,} trials, {len(left):,} of them beyond the limits. Chosen: {_trial(chosen, direction.verb)}.",
        330,
        traces,
        xaxis={
            "type": "log",
            "range": [min(ends) - 0.1, max(ends) + 0.1],
            "tickvals": list(_PERCENTS),
            "ticktext": [f"{percent:g}%" for percent in _PERCENTS],
            "title": {"text": "size of the set, of all neurons", "font": {"size": 13}},
            "showgrid": False,
        },
        yaxis=SHARES,
        shapes=[_dotted("y", "x", limits["target"])],
    )


def _trial(trial: Trial, verb: str) -> str:
    return (
        f"{trial['neurons']:,} neurons ({text.share(trial['percent'] / 100)}), alpha {trial['alpha']:.2f}, "
        f"{trial['prompt_positions']} prompt positions, {trial['generated_tokens']} generated tokens: "
        f"{text.percent(trial['moved'])} {verb}, {text.percent(trial['broken'])} broken, KL on the other prompts "
        f"{text.nats(trial['side_kl_divergence'])}"
    )


def _dotted(along: str, across: str, value: float) -> dict[str, Any]:
    """A line through the whole figure at one value of one axis."""
    ends = {f"{along}0": value, f"{along}1": value, f"{across}0": 0, f"{across}1": 1, f"{across}ref": "paper"}
    return {"type": "line", "layer": "below", "line": {"color": GRAY, "width": 1, "dash": "dot"}} | ends


def _detectors(results: dict[str, Any]) -> Figure | None:
    rows = [row | row["auroc"] for row in causal_tables.detector_rows(results)]
    if not rows:
        return None
    tests = list(dict.fromkeys(str(row["on"]) for row in rows))
    names = list(dict.fromkeys(str(row["detector"]) for row in rows))
    others = itertools.cycle([(VERMILION, "diamond"), (PURPLE, "cross"), (GREEN, "triangle-up")])
    spread = 0.7 / max(len(names), 4)
    traces = []
    for number, name in enumerate(names):
        color, symbol = _detector_style(name) or next(others)
        own = [row for row in rows if row["detector"] == name]
        placed = place(own, "on", tests, (number - (len(names) - 1) / 2) * spread)
        traces.append(markers(name, placed, color, symbol, horizontal=True, say=_auroc))
    said = [
        f"{text.visible(row['on'], 40)}, {text.visible(row['detector'], 60)}: {text.auroc(row['value'])}"
        for row in rows[:_MOST_SPOKEN]
    ]
    return make_figure(
        "detectors",
        f"Points with intervals: AUROC of each detector on each test, 0.5 is chance. {text.visible('; '.join(said))}.",
        120 + 20 * len(names) + (16 + 17 * len(names)) * len(tests),
        traces,
        xaxis={"range": [min(0.5, *(row["low"] for row in rows)) - 0.03, 1.03], "tickformat": ".1f", "dtick": 0.1},
        yaxis={
            "tickvals": list(range(len(tests))),
            "ticktext": [text.label(test) for test in tests],
            "range": [len(tests) - 0.5, -0.5],
            "showgrid": False,
        },
        shapes=[_dotted("x", "y", 0.5)],
    )


def _detector_style(name: str) -> tuple[str, str] | None:
    for start, style in (("guard", (BLUE, "circle")), ("found", (GREEN, "square")), ("random", (GRAY, "circle-open"))):
        if name.startswith(start):
            return style
    return None


def _auroc(one: Rate) -> str:
    return f"{text.auroc(one.value)} ({text.score(one.low)} to {text.score(one.high)})"
