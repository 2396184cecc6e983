"""The map of single neurons: every tick is a found neuron, and every point can be read."""

from pathlib import Path
from typing import Any

import pytest

from builders.report import PAYLOAD, mapped, neuron_set, page, whole_run
from safety_neurons.report import RunResults, neuron_map

Places = set[tuple[int, int]]


def ticks(trace: dict[str, Any]) -> Places:
    """Layer and place of each tick, read from the line: two ends and a gap."""
    assert trace["x"][0::3] == trace["x"][1::3]
    assert set(trace["x"][2::3]) <= {None}
    assert all(int(low + 0.5) == int(high + 0.5) for low, high in zip(trace["y"][0::3], trace["y"][1::3], strict=True))
    return {(round(layer), place) for place, layer in zip(trace["x"][0::3], trace["y"][0::3], strict=True)}


def test_every_tick_is_a_found_neuron(tmp_path: Path) -> None:
    shown = page(tmp_path, mapped())
    rejection, conformity, read = shown.json["data-map"]["data"]
    # The second MLP of layer 1 begins where its first, of 8 neurons, ends.
    assert ticks(rejection) == {(0, 0), (0, 7), (1, 3), (1, 9), (1, 13)}
    assert ticks(conformity) == {(0, 2), (1, 8)}
    assert (read["x"], [round(layer) for layer in read["y"]]) == ([13], [1])
    assert read["hovertext"] == ["layer 1, neuron 5 (rejection)<br>toward:  Sorry<br>away from: Sure"]
    random = [ticks(trace) for trace in shown.json["data-map-random"]["data"]]
    assert [len(side) for side in random] == [5, 2]
    assert not (random[0] | random[1]) & (ticks(rejection) | ticks(conformity))
    assert "One in" not in shown.text


def test_words_of_single_neurons_are_in_a_table(tmp_path: Path) -> None:
    shown = page(tmp_path, mapped())
    assert "The words of 1 single neurons" in shown.text
    assert "·<bdi></bdi>" not in shown.source
    alternative = next(str(a["aria-label"]) for _, a in shown.tags if a.get("data-figure") == "data-map")
    assert alternative.startswith(
        "Map of the found neurons: 5 for rejection and 2 for conformity, one row for each of 2"
    )


def test_without_indices_there_is_no_map(tmp_path: Path) -> None:
    shown = page(tmp_path, whole_run())
    assert "Neuron by neuron" not in shown.text
    results = mapped()
    del results["control"], results["words"]
    alone = page(tmp_path, results)
    assert "data-map" in alone.json
    assert "data-map-random" not in alone.json


def test_a_large_model_is_thinned(tmp_path: Path) -> None:
    results = mapped()
    hook_points = [
        {"layer": layer, "site": layer, "width": 28672, "rejection": list(range(0, 28672, 50)), "conformity": [1]}
        for layer in range(80)
    ]
    results["neurons"]["indices"] = results["control"]["indices"] = hook_points
    shown = page(tmp_path, results)
    drawn = sum(len(ticks(trace)) for trace in shown.json["data-map"]["data"][:2])
    assert 5000 < drawn <= 10_000
    assert f"One in {neuron_map.drawn_share(RunResults.of(results))} is drawn." in shown.text
    assert len(shown.source.encode()) < 8_000_000


def test_hostile_words_are_shown_and_not_run(tmp_path: Path) -> None:
    results = mapped()
    one = results["words"][1]["neurons"][0]
    one["promoted"] = one["suppressed"] = [PAYLOAD + "W" * 1_000_000] * 10
    shown = page(tmp_path, results)
    assert [tag for tag, _ in shown.tags if tag == "img"] == []
    assert "W" * 3000 not in shown.source
    said = shown.json["data-map"]["data"][2]["hovertext"][0].replace("<br>", "")
    assert "<" not in said
    assert "\u202e" not in said


@pytest.mark.parametrize("side", ["rejection", "conformity"])
def test_indices_are_the_neurons(side: str) -> None:
    neurons = neuron_set()
    entries = neurons.indices()
    assert [entry[side] for entry in entries] == [hook_point.tolist() for hook_point in getattr(neurons, side)]
    assert [(entry["layer"], entry["hook_point"], entry["width"]) for entry in entries] == [
        (0, 0, 8),
        (1, 1, 8),
        (1, 2, 6),
    ]
