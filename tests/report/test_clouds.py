"""The two clouds on the page: every plane of the results, names instead of prompts, and nothing without them."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from builders.report import CLOUDS, DASH, PAYLOAD, Rows, clouds, page, whole_run
from safety_neurons.report import RunResults
from safety_neurons.report import clouds as planes

# The traces of the figure: first the ways, then these.
TRACES = ("harmful_calibrated", "benign_calibrated", "harmful", "benign")


def clouded(**options: int) -> dict[str, Any]:
    results = whole_run()
    return results | {"clouds": clouds(**options)}


def test_every_plane_holds_the_points_of_the_results(tmp_path: Path) -> None:
    results = clouded()
    shown = page(tmp_path, results)
    figure = shown.json["data-clouds"]
    assert [one["layer"] for one in figure["planes"]] == [0, 1, 2, None]
    for plane, entry in zip(figure["planes"], results["clouds"]["layers"], strict=True):
        ways, *places = plane["places"]
        for axis in "xy":
            given = [value for name in TRACES for value in entry["points"][name][axis]]
            drawn = [value for place in places for value in place[axis]]
            # Stretched to the frame, and nothing else.
            scale = (max(drawn) - min(drawn)) / (max(given) - min(given))
            moved = [min(drawn) + (value - min(given)) * scale for value in given]
            assert drawn == pytest.approx(moved, abs=2e-4)
            assert (min(drawn), max(drawn)) == pytest.approx((0.08, 0.92))
            assert set(ways[axis][2::3]) == {None}
            assert ways[axis][1::3] == places[0][axis] + places[1][axis]
            assert ways[axis][0::3] == places[2][axis] + places[3][axis]
    assert [{axis: trace[axis] for axis in "xy"} for trace in figure["data"]] == figure["planes"][1]["places"]


def test_the_best_layer_is_shown_first_and_all_are_in_the_table(tmp_path: Path) -> None:
    shown = page(tmp_path, clouded())
    slider = next(attributes for _, attributes in shown.tags if attributes.get("id") == "clouds-layer")
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "3", "1")
    assert any(tag == "label" and attributes.get("for") == "clouds-layer" for tag, attributes in shown.tags)
    said = f"Layer 1, 11 neurons: AUROC 0.970 (0.87{DASH}0.99), of random neurons 0.600 (0.50{DASH}0.70)."
    assert said in shown.text
    for start in ("layer 0 | 10 | 0.800", "layer 2 | 12 | 0.798", "all layers | 13 | 0.797"):
        assert any(row.startswith(start) for row in Rows(shown.source).found)
    alternative = next(str(a["aria-label"]) for _, a in shown.tags if a.get("data-figure") == "data-clouds")
    assert "Points: 4 harmful and 4 benign prompts" in alternative
    assert said in alternative
    found = shown.json["data-clouds-auroc"]["data"][1]
    assert found["y"] == [0.8, 0.97, 0.798]
    assert shown.json["data-clouds-auroc"]["layout"]["shapes"][0]["x0"] == 1


def test_of_layers_that_are_equal_the_one_with_more_neurons_is_first() -> None:
    results = clouded()
    for entry in results["clouds"]["layers"]:
        entry["auroc"] = {"value": 1.0, "low": 1.0, "high": 1.0}
    # The last is all layers together, which are no layer.
    assert planes.first(planes.planes(RunResults.of(results))) == 2


def test_prompts_are_named_and_not_shown(tmp_path: Path) -> None:
    traces = page(tmp_path, clouded()).json["data-clouds"]["data"]
    assert traces[3]["hovertext"][2] == "harmful-002 (weapons)"
    assert traces[1]["hovertext"][2] == "harmful-002 (weapons), calibrated toward conformity"
    assert traces[2]["hovertext"][0] == "benign-000, calibrated toward rejection"
    assert [trace["name"] for trace in sorted(traces[1:], key=lambda trace: trace["legendrank"])][:2] == [*CLOUDS[:2]]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    results = clouded()
    for side in ("harmful", "benign"):
        results["clouds"]["prompts"][side] = [{"id": PAYLOAD, "category": PAYLOAD + "W" * 1_000_000}] * 4
    shown = page(tmp_path, results)
    assert [tag for tag, _ in shown.tags if tag == "img"] == []
    assert "W" * 100 not in shown.source
    said = "".join(itertools.chain(*(trace.get("hovertext", []) for trace in shown.json["data-clouds"]["data"])))
    assert "<" not in said
    assert "\u202e" not in said


def test_a_run_without_clouds_has_no_such_part(tmp_path: Path) -> None:
    shown = page(tmp_path, whole_run())
    assert "clouds" not in shown.ids()
    assert "Two clouds" not in shown.text
    assert not any("clouds" in script for script in shown.scripts)
    assert "clouds" in page(tmp_path, clouded()).ids()


def test_large_models_stay_small(tmp_path: Path) -> None:
    results = clouded(layers=126, prompts=40)
    # As `read_clouds` leaves it: points of at most 64 layers and of all together.
    for entry in results["clouds"]["layers"][:62]:
        entry["explained"] = entry["points"] = None
    assert len(json.dumps(results["clouds"], indent=2)) < 600_000
    shown = page(tmp_path, results)
    assert len(shown.json["data-clouds"]["planes"]) == 65
    assert len(json.dumps(shown.json["data-clouds"])) < 600_000
    assert "The slider has the 64 layers with the most neurons; the table has all." in shown.text
    assert any(row.startswith("layer 0 | 10 | 0.") for row in Rows(shown.source).found)
