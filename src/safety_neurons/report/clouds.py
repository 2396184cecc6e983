"""Two clouds: harmful and benign prompts in the plane of the safety neurons, layer by layer, as they are and pushed."""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from safety_neurons.report import text
from safety_neurons.report.drawing import BLUE, GRAY, VERMILION, Figure, make_figure, markers

SIDES = ("harmful", "benign")
# What a page can hold.
_MOST_PLANES = 65
_MOST_PROMPTS = 40
_MOST_LAYERS = 200
_TOWARD = {"harmful": "conformity", "benign": "rejection"}
_STYLES = {"harmful": (VERMILION, "diamond"), "benign": (BLUE, "circle")}
_MARGIN = 0.08


@dataclass(frozen=True)
class Layer:
    """A layer, or all of them together: what tells the two kinds of prompts apart, and what the push does."""

    name: str
    number: int | None
    neurons: int
    found: dict[str, float]
    random: dict[str, float]
    half: dict[str, float]
    explained: list[float] | None
    points: dict[str, dict[str, list[float]]] | None


def layers(results: dict[str, Any]) -> list[Layer]:
    """Every layer that has found neurons, from the input to the output, then all together."""
    return [
        Layer(
            "all layers" if entry["layer"] is None else f"layer {int(entry['layer'])}",
            entry["layer"],
            entry["neurons"],
            entry["auroc"],
            entry["auroc_random"],
            entry["harmful_half"],
            entry["explained"],
            entry["points"],
        )
        for entry in ((results.get("clouds") or {}).get("layers") or [])[:_MOST_LAYERS]
    ]


def planes(results: dict[str, Any]) -> list[Layer]:
    """Those that can be drawn."""
    return [one for one in layers(results) if one.points is not None][-_MOST_PLANES:]


def first(drawn: list[Layer]) -> int:
    """Which plane is shown first: the layer that tells the kinds of prompts apart best, of equals that with the most
    neurons."""
    ranked = [(one.found["value"], one.found["low"], one.neurons, number) for number, one in enumerate(drawn)]
    single = [rank for rank, one in zip(ranked, drawn, strict=True) if one.number is not None]
    return max(single or ranked)[-1]


def said(one: Layer) -> str:
    """A plane in words."""
    across, up = one.explained or (0.0, 0.0)
    return (
        f"{one.name.capitalize()}, {one.neurons:,} neuron{'' if one.neurons == 1 else 's'}: AUROC "
        f"{measured(one.found)}, of random neurons {measured(one.random)}. Of what the neurons vary, the first axis "
        f"holds {text.percent(across)}, the second {text.percent(up)}."
    )


def figures(results: dict[str, Any]) -> list[Figure | None]:
    """The clouds in the plane that is shown first, with the other planes beside; and separability by layer."""
    drawn = planes(results)
    return [_clouds(results, drawn), _separability(layers(results), drawn[first(drawn)])] if drawn else []


def _clouds(results: dict[str, Any], drawn: list[Layer]) -> Figure:
    section, shown = results["clouds"], first(drawn)
    places = [_scaled(one) for one in drawn]
    traces: list[Any] = [
        go.Scatter(
            name="its way",
            mode="lines",
            line={"color": GRAY, "width": 1},
            opacity=0.45,
            hoverinfo="skip",
            showlegend=False,
        )
    ]
    # The prompts as they are lie above, so that they cover the pushed ones that have not left yet.
    for pushed in (True, False):
        for side in SIDES:
            color, symbol = _STYLES[side]
            push = f", pushed toward {_TOWARD[side]}" if pushed else ""
            traces.append(
                go.Scatter(
                    name=f"{side}{push}",
                    legendrank=2 if pushed else 1,
                    mode="markers",
                    marker={
                        "color": color,
                        "symbol": symbol + ("-open" if pushed else ""),
                        "size": 9,
                        "line": {"color": color, "width": 1.5 if pushed else 0},
                    },
                    hovertext=[_prompt(one) + push for one in section["prompts"][side][:_MOST_PROMPTS]],
                    hoverinfo="text",
                )
            )
    for trace, place in zip(traces, places[shown], strict=True):
        trace.update(place)
    alphas = {side: f"{section['alpha'][toward]:g}" for side, toward in _TOWARD.items()}
    # Each plane is stretched to the frame, so that the axes stay where they are while the layers change.
    axis = {"range": [-0.03, 1.03], "showticklabels": False, "showgrid": False}
    figure = make_figure(
        "clouds",
        f"Points: {len(places[shown][3]['x'])} harmful and {len(places[shown][4]['x'])} benign prompts in the plane of "
        f"the safety neurons, and where they lie once pushed, toward conformity with alpha {alphas['harmful']} "
        f"and toward rejection with alpha {alphas['benign']}. Shown first: {said(drawn[shown])} The table below has "
        "every layer.",
        440,
        traces,
        xaxis=axis | {"title": {"text": "first principal component"}},
        yaxis=axis | {"title": {"text": "second"}},
    )
    figure.specification["planes"] = [
        {"said": said(one), "layer": one.number, "places": place} for one, place in zip(drawn, places, strict=True)
    ]
    return figure


def _scaled(one: Layer) -> list[dict[str, list[float | None]]]:
    """Where each trace's points are in the frame, from 0 to 1: first the ways from base to pushed prompts."""
    assert one.points is not None
    clouds = [one.points[name] for name in (*(f"{side}_pushed" for side in SIDES), *SIDES)]
    placed: list[dict[str, list[float | None]]] = [{} for _ in range(5)]
    for axis in "xy":
        values = [cloud[axis][:_MOST_PROMPTS] for cloud in clouds]
        low, high = min(map(min, values)), max(map(max, values))
        width = high - low or 1.0
        inside = [
            [round(_MARGIN + (1 - 2 * _MARGIN) * ((value - low) / width if high > low else 0.5), 4) for value in part]
            for part in values
        ]
        for cloud, part in zip(placed[1:], inside, strict=True):
            cloud[axis] = list(part)
        placed[0][axis] = [
            end
            for after, before in zip(inside[:2], inside[2:], strict=True)
            for start, stop in zip(before, after, strict=True)
            for end in (start, stop, None)
        ]
    return placed


def _prompt(one: dict[str, Any]) -> str:
    """A prompt by its name and kind; never what it asks for."""
    category = f" ({text.label(one['category'], 40)})" if one["category"] else ""
    return text.label(one["id"], 40) + category


def _separability(every: list[Layer], shown: Layer) -> Figure:
    single = [one for one in every if one.number is not None]
    traces = []
    for name, color, symbol, shift in (("random", GRAY, "circle-open", 0.12), ("found", BLUE, "circle", -0.12)):
        rows = [one.found if name == "found" else one.random for one in single]
        placed = [
            ((one.number or 0) + shift, row | {"n": one.neurons, "unscored": 0})
            for one, row in zip(single, rows, strict=True)
        ]
        trace = markers(name, placed, color, symbol, say=lambda rate: f"AUROC {text.auroc(rate.value)}")
        trace.update(marker_size=7, error_y_width=0)
        trace.hovertext = [
            f"{one.name}, {one.neurons:,} {name} neurons: AUROC {measured(row)}"
            for one, row in zip(single, rows, strict=True)
        ]
        traces.append(trace)
    least = min((row["low"] for one in single for row in (one.found, one.random)), default=0.5)
    dotted = {"type": "line", "layer": "below", "line": {"color": GRAY, "width": 1, "dash": "dot"}}
    return make_figure(
        "clouds-auroc",
        "Points with intervals: how well the neurons of each layer tell harmful from benign prompts, 0.5 is chance. "
        + "; ".join(
            f"{one.name}: found {text.score(one.found['value'])}, random {text.score(one.random['value'])}"
            for one in single[:24]
        )
        + ".",
        300,
        traces,
        xaxis={"title": {"text": "layer (0 is next to the input)"}, "showgrid": False},
        yaxis={"title": {"text": "AUROC"}, "range": [min(0.45, least - 0.03), 1.03], "tickformat": ".1f", "dtick": 0.1},
        shapes=[
            dotted | {"x0": shown.number, "x1": shown.number, "y0": 0, "y1": 1, "yref": "paper"},
            dotted | {"x0": 0, "x1": 1, "xref": "paper", "y0": 0.5, "y1": 0.5},
        ],
    )


def measured(one: dict[str, float]) -> str:
    return f"{text.auroc(one['value'])} ({text.score(one['low'])} to {text.score(one['high'])})"
