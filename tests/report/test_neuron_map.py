"""The map of single neurons: every tick is a found neuron, and every point can be read."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from safety_neurons.neurons.neuron_set import NeuronSet, Provenance
from safety_neurons.report import neuron_map

# The parsed page and the results of a run are those of the other test of the page.
_SPEC = importlib.util.spec_from_file_location("report_page", Path(__file__).with_name("test_report.py"))
assert _SPEC
assert _SPEC.loader
base = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(base)

Places = set[tuple[int, int]]


def neuron_set() -> NeuronSet:
    """Three MLPs, the last two of them in one layer."""
    provenance = Provenance("tiny", "abc", "gradient", 2.0, "model", 0, (3, 3, 3), 1000)
    indices: list[list[list[int]]] = [[[0, 7], [3], [1, 5]], [[2], [], [0]]]
    sides = [tuple(torch.tensor(hook_point, dtype=torch.int64) for hook_point in side) for side in indices]
    return NeuronSet(sides[0], sides[1], (8, 8, 6), (0, 1, 1), provenance)


def mapped() -> dict[str, Any]:
    neurons = neuron_set()
    results: dict[str, Any] = base.whole_run()
    results["neurons"]["indices"] = neurons.indices()
    results["control"] = {"indices": neurons.random_like(1).indices()}
    read = {"site": 2, "neuron": 5, "weight": 0.1, "strength": 0.2, "promoted": [" Sorry"], "suppressed": ["Sure"]}
    results["words"][1]["neurons"] = [read | {"layer": 1, "side": "rejection"}]
    return results


def ticks(trace: dict[str, Any]) -> Places:
    """Layer and place of each tick, read from the line: two ends and a gap."""
    assert trace["x"][0::3] == trace["x"][1::3]
    assert set(trace["x"][2::3]) <= {None}
    assert all(int(low + 0.5) == int(high + 0.5) for low, high in zip(trace["y"][0::3], trace["y"][1::3], strict=True))
    return {(round(layer), place) for place, layer in zip(trace["x"][0::3], trace["y"][0::3], strict=True)}


def test_every_tick_is_a_found_neuron(tmp_path: Path) -> None:
    shown = base.page(tmp_path, mapped())
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
    shown = base.page(tmp_path, mapped())
    assert "The words of 1 single neurons" in shown.text
    assert "·<bdi></bdi>" not in shown.source
    alternative = next(str(a["aria-label"]) for _, a in shown.tags if a.get("data-figure") == "data-map")
    assert alternative.startswith(
        "Map of the found neurons: 5 for rejection and 2 for conformity, one row for each of 2"
    )


def test_without_indices_there_is_no_map(tmp_path: Path) -> None:
    shown = base.page(tmp_path, base.whole_run())
    assert "Neuron by neuron" not in shown.text
    results = mapped()
    del results["control"], results["words"]
    alone = base.page(tmp_path, results)
    assert "data-map" in alone.json
    assert "data-map-random" not in alone.json


def test_a_large_model_is_thinned(tmp_path: Path) -> None:
    results = mapped()
    hook_points = [
        {"layer": layer, "site": layer, "width": 28672, "rejection": list(range(0, 28672, 50)), "conformity": [1]}
        for layer in range(80)
    ]
    results["neurons"]["indices"] = results["control"]["indices"] = hook_points
    shown = base.page(tmp_path, results)
    drawn = sum(len(ticks(trace)) for trace in shown.json["data-map"]["data"][:2])
    assert 5000 < drawn <= 10_000
    assert f"One in {neuron_map.drawn_share(results)} is drawn." in shown.text
    assert len(shown.source.encode()) < 8_000_000


def test_hostile_words_are_shown_and_not_run(tmp_path: Path) -> None:
    results = mapped()
    one = results["words"][1]["neurons"][0]
    one["promoted"] = one["suppressed"] = [base.PAYLOAD + "W" * 1_000_000] * 10
    shown = base.page(tmp_path, results)
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
    assert [(entry["layer"], entry["site"], entry["width"]) for entry in entries] == [(0, 0, 8), (1, 1, 8), (1, 2, 6)]
