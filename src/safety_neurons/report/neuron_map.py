"""Where the single neurons sit: a map of layers and neurons, with the words of those that were read one by one."""

from collections.abc import Iterator, Mapping
from typing import Any

import plotly.graph_objects as go

from safety_neurons.report import text
from safety_neurons.report.drawing import BLUE, GRAY, VERMILION, Figure, make_figure
from safety_neurons.report.results import HookPointNeurons, RunResults, SingleNeuron
from safety_neurons.report.run_tables import read_neurons

# What a map of some hundred pixels can show, and what a page can hold.
_PLACES = 1000
_MOST_TICKS = 10_000
_MOST_WORDS = 8
_TALLEST = 760


def drawn_share(results: RunResults) -> int:
    """One in how many neurons the map has room for."""
    return _step(_sides(results.neurons.indices if results.neurons else []))


def figures(results: RunResults) -> list[Figure | None]:
    """The map of the found neurons, and of the random ones that they are compared with."""
    found = results.neurons.indices if results.neurons else []
    random = results.control.indices if results.control else []
    return [
        _map("map", "the found neurons", found, (BLUE, VERMILION), read_neurons(results)),
        _map("map-random", "as many random neurons of each layer", random, (GRAY, GRAY), []),
    ]


def _starts(hook_points: list[HookPointNeurons]) -> dict[int, int]:
    """Where the neurons of each hook point begin: a layer may have several MLPs, one after the other."""
    starts: dict[int, int] = {}
    filled: dict[int, int] = {}
    for entry in hook_points:
        starts[entry.hook_point] = filled.get(entry.layer, 0)
        filled[entry.layer] = starts[entry.hook_point] + entry.width
    return starts


def _sides(hook_points: list[HookPointNeurons]) -> dict[str, list[tuple[int, int]]]:
    """Layer and place of each side's neurons; those nearer than can be seen are one."""
    starts = _starts(hook_points)
    cell = max(1, _widest(hook_points) // _PLACES)
    return {
        side: list(
            dict.fromkeys(
                (entry.layer, (starts[entry.hook_point] + index) // cell * cell)
                for entry in hook_points
                for index in getattr(entry, side)
            )
        )
        for side in ("rejection", "conformity")
    }


def _widest(hook_points: list[HookPointNeurons]) -> int:
    """The neurons of the layer that has the most."""
    starts = _starts(hook_points)
    return max((starts[entry.hook_point] + entry.width for entry in hook_points), default=0)


def _step(sides: Mapping[str, list[tuple[int, int]]]) -> int:
    return max(1, -(-sum(map(len, sides.values())) // _MOST_TICKS))


def _map(
    name: str, whose: str, hook_points: list[HookPointNeurons], colors: tuple[str, str], read: list[SingleNeuron]
) -> Figure | None:
    if not hook_points:
        return None
    sides = _sides(hook_points)
    step = _step(sides)
    traces: list[Any] = []
    for (side, places), color, half in zip(sides.items(), colors, (1, -1), strict=True):
        ticks = list(_ticks(places[::step], half))
        traces.append(
            go.Scatter(
                x=[x for x, _ in ticks],
                y=[y for _, y in ticks],
                name=side,
                mode="lines",
                line={"color": color, "width": 1},
                connectgaps=False,
                hoverinfo="skip",
                showlegend=name == "map",
            )
        )
    if read:
        traces.append(_points(read, _starts(hook_points)))
    layers = sorted({entry.layer for entry in hook_points})
    widest = _widest(hook_points)
    counts = {side: sum(len(getattr(entry, side)) for entry in hook_points) for side in sides}
    return make_figure(
        name,
        f"Map of {whose}: {counts['rejection']:,} for rejection and {counts['conformity']:,} for conformity, one row "
        f"for each of {len(layers)} layers, from left to right by the index in the layer.",
        min(_TALLEST, 120 + 15 * len(layers)),
        traces,
        xaxis={
            "title": {"text": "neuron, by its index in the layer"},
            "showgrid": False,
            "range": [-0.015 * widest, 1.015 * widest],
        },
        yaxis={"title": {"text": "layer"}, "range": [layers[0] - 0.8, layers[-1] + 0.8], "showgrid": False},
    )


def _ticks(places: list[tuple[int, int]], half: int) -> Iterator[tuple[int | None, float | None]]:
    # One line with gaps is one element on the page, however many neurons there are.
    for layer, place in places:
        yield place, layer + half * 0.04
        yield place, layer + half * 0.42
        yield None, None


def _points(read: list[SingleNeuron], starts: dict[int, int]) -> Any:
    colors = {"rejection": BLUE, "conformity": VERMILION}
    return go.Scatter(
        x=[one.neuron + starts.get(one.hook_point, 0) for one in read],
        y=[one.layer + (0.23 if one.side == "rejection" else -0.23) for one in read],
        name="read one by one",
        mode="markers",
        marker={
            "color": [colors.get(one.side, GRAY) for one in read],
            "symbol": ["circle" if one.side == "rejection" else "diamond" for one in read],
            "size": 6,
        },
        hovertext=[_spoken(one) for one in read],
        hoverinfo="text",
    )


def _spoken(one: SingleNeuron) -> str:
    toward, away = (
        ", ".join(text.label(word, 24) for word in words[:_MOST_WORDS]) for words in (one.promoted, one.suppressed)
    )
    said = f"layer {one.layer}, neuron {one.neuron} ({text.label(one.side, 20)})<br>toward: {toward}"
    return f"{said}<br>away from: {away}" if away else said
