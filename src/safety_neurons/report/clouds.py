"""Two clouds: harmful and benign prompts in the plane of each layer's safety neurons, before and after calibration."""

from typing import Any

import plotly.graph_objects as go

from safety_neurons.report import text
from safety_neurons.report.drawing import BLUE, GRAY, LAYER_AXIS, VERMILION, Figure, dotted, make_figure, markers
from safety_neurons.report.results import CloudLayer, CloudPrompt, Clouds, RunResults
from safety_neurons.report.run_tables import MOST_LAYERS, layer_name

SIDES = ("harmful", "benign")
# What a page can hold.
_MOST_PLANES = 65
_MOST_PROMPTS = 40
_TOWARD = {"harmful": "conformity", "benign": "rejection"}
_STYLES = {"harmful": (VERMILION, "diamond"), "benign": (BLUE, "circle")}
_MARGIN = 0.08


def planes(results: RunResults) -> list[CloudLayer]:
    """The layers that can be drawn."""
    return [one for one in _layers(results) if one.points is not None][-_MOST_PLANES:]


def _layers(results: RunResults) -> list[CloudLayer]:
    return results.clouds.layers[:MOST_LAYERS] if results.clouds else []


def first(drawn: list[CloudLayer]) -> int:
    """The plane to show first: the layer that tells the prompts apart best; of equals, the one with most neurons."""
    ranked = [(one.auroc.value or 0, one.auroc.low or 0, one.neurons, number) for number, one in enumerate(drawn)]
    single = [rank for rank, one in zip(ranked, drawn, strict=True) if one.layer is not None]
    return max(single or ranked)[-1]


def said(one: CloudLayer) -> str:
    """A plane in words."""
    across, up = one.explained or (0.0, 0.0)
    return (
        f"{layer_name(one).capitalize()}, {one.neurons:,} neuron{'' if one.neurons == 1 else 's'}: AUROC "
        f"{text.mean(one.auroc, text.auroc).text}, of random neurons {text.mean(one.auroc_random, text.auroc).text}. "
        f"Of the variance of the neurons, the first axis holds {text.percent(across)}, the second {text.percent(up)}."
    )


def figures(results: RunResults) -> list[Figure | None]:
    """The clouds in the plane that is shown first, with the other planes beside; and separability by layer."""
    drawn = planes(results)
    if not drawn or not results.clouds:
        return []
    return [_clouds(results.clouds, drawn), _separability(_layers(results), drawn[first(drawn)])]


def _clouds(section: Clouds, drawn: list[CloudLayer]) -> Figure:
    shown = first(drawn)
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
    # The uncalibrated prompts lie above, so that they cover the calibrated ones that have not moved.
    for pushed in (True, False):
        for side in SIDES:
            color, symbol = _STYLES[side]
            push = f", calibrated toward {_TOWARD[side]}" if pushed else ""
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
                    hovertext=[_prompt(one) + push for one in section.prompts.get(side, [])[:_MOST_PROMPTS]],
                    hoverinfo="text",
                )
            )
    for trace, place in zip(traces, places[shown], strict=True):
        trace.update(place)
    alphas = {side: f"{section.alpha.get(toward, 0):g}" for side, toward in _TOWARD.items()}
    # Each plane is stretched to the frame, so that the axes stay where they are while the layers change.
    axis = {"range": [-0.03, 1.03], "showticklabels": False, "showgrid": False}
    figure = make_figure(
        "clouds",
        f"Points: {len(places[shown][3]['x'])} harmful and {len(places[shown][4]['x'])} benign prompts in the plane of "
        f"the safety neurons, and where they lie once calibrated, toward conformity with alpha {alphas['harmful']} "
        f"and toward rejection with alpha {alphas['benign']}. Shown first: {said(drawn[shown])} The table below has "
        "every layer.",
        440,
        traces,
        xaxis=axis | {"title": {"text": "first principal component"}},
        yaxis=axis | {"title": {"text": "second"}},
    )
    figure.specification["planes"] = [
        {"said": said(one), "layer": one.layer, "places": place} for one, place in zip(drawn, places, strict=True)
    ]
    return figure


def _scaled(one: CloudLayer) -> list[dict[str, list[float | None]]]:
    """Where each trace's points are in the frame, from 0 to 1: first the ways from base to calibrated prompts."""
    assert one.points is not None
    clouds = [one.points[name] for name in (*(f"{side}_calibrated" for side in SIDES), *SIDES)]
    placed: list[dict[str, list[float | None]]] = [{} for _ in range(5)]
    for axis in "xy":
        values = [getattr(cloud, axis)[:_MOST_PROMPTS] for cloud in clouds]
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


def _prompt(one: CloudPrompt) -> str:
    """A prompt by its name and kind; never what it asks for."""
    category = f" ({text.label(one.category, 40)})" if one.category else ""
    return text.label(one.id, 40) + category


def _separability(every: list[CloudLayer], shown: CloudLayer) -> Figure:
    single = [one for one in every if one.layer is not None]
    traces = []
    for name, color, symbol, shift in (("random", GRAY, "circle-open", 0.12), ("found", BLUE, "circle", -0.12)):
        rates = [one.auroc if name == "found" else one.auroc_random for one in single]
        placed = [((one.layer or 0) + shift, rate) for one, rate in zip(single, rates, strict=True)]
        trace = markers(name, placed, color, symbol)
        trace.update(marker_size=7, error_y_width=0)
        trace.hovertext = [
            f"{layer_name(one)}, {one.neurons:,} {name} neurons: AUROC {text.mean(rate, text.auroc).text}"
            for one, rate in zip(single, rates, strict=True)
        ]
        traces.append(trace)
    least = min((rate.low or 0 for one in single for rate in (one.auroc, one.auroc_random)), default=0.5)
    return make_figure(
        "clouds-auroc",
        "Points with intervals: how well the neurons of each layer tell harmful from benign prompts, 0.5 is chance. "
        + "; ".join(
            f"{layer_name(one)}: found {text.score(one.auroc.value)}, random {text.score(one.auroc_random.value)}"
            for one in single[:24]
        )
        + ".",
        300,
        traces,
        xaxis=LAYER_AXIS,
        yaxis={"title": {"text": "AUROC"}, "range": [min(0.45, least - 0.03), 1.03], "tickformat": ".1f", "dtick": 0.1},
        shapes=[dotted("x", shown.layer or 0), dotted("y", 0.5)],
    )
