"""The dose-response, the search for the smallest push and the guard on the page: there, absent, and hostile."""

import copy
from pathlib import Path
from typing import Any

import pytest

from builders.report import (
    DASH,
    MINUS,
    SECTIONS,
    Rows,
    dose_response,
    guard,
    page,
    partial_run,
    poisoned,
    search,
    trial,
    whole_run,
)
from safety_neurons.report import RunResults, experiment_figures, summary, tables_of, text

FIGURES = {"data-doses-harmful", "data-doses-benign", "data-search-1", "data-search-2", "data-detectors"}


def all_sections() -> dict[str, Any]:
    results = whole_run()
    return results | {"dose_response": dose_response(), "search": search(), "guard": guard()}


def test_sections_are_there(tmp_path: Path) -> None:
    shown = page(tmp_path, all_sections())
    assert shown.ids() == SECTIONS
    assert set(shown.json) >= FIGURES
    assert ("a", {"href": "#guard"}) in shown.tags
    assert "not here yet" not in shown.text
    for heading in (
        "How large must alpha be?",
        "The smallest intervention that works",
        "Refused without and with the guard",
    ):
        assert heading in shown.text


def test_without_them_the_page_is_as_before(tmp_path: Path) -> None:
    shown = page(tmp_path, whole_run())
    assert shown.ids() == SECTIONS
    assert not FIGURES & set(shown.json)
    assert "How large must alpha be?" not in shown.text
    assert "The smallest intervention that works" not in shown.text
    assert shown.text.count("not here yet") == 1
    assert "The guard is not here yet: safety-neurons guard RUN_DIR makes and tests it." in shown.text


@pytest.mark.parametrize("name", ["dose_response", "search", "guard"])
def test_each_stands_alone(tmp_path: Path, name: str) -> None:
    results = partial_run()
    shown = page(tmp_path, results | {name: all_sections()[name]})
    part = {"dose_response": "doses", "search": "search", "guard": "detectors"}[name]
    assert set(shown.json) == {"data-layers"} | {one for one in FIGURES if part in one}
    assert ("The tests of cause are not here yet" in shown.text) == (name == "guard")
    untested = "whether they cause refusals is not tested yet"
    assert (untested in summary.verdict(RunResults.of(results | {name: all_sections()[name]})).sentence) == (
        name == "guard"
    )


def test_dose_response_in_numbers(tmp_path: Path) -> None:
    shown = page(tmp_path, all_sections())
    for said in (
        "1,171 found neurons",
        "an alpha 16.4 times as high",
        "Prompts: sorry:alpaca",
        "above 2.5 nats per token",
        "calibrate.alpha_conformity",
    ):
        assert said in shown.text
    rows = Rows(shown.source).found
    assert f"{MINUS}2 | found | 96% (86{DASH}100%) | 3% (0{DASH}10%) | 1% (0{DASH}8%) | 0.31 | 59" in rows
    assert (
        f"{MINUS}2 | random, equal dose (32.8) | 63% (53{DASH}70%) | 36% (26{DASH}43%) | 1% (0{DASH}8%) | 0.02 | 59"
        in rows
    )
    assert f"+2 | random | 5% (0{DASH}12%) | 95% (85{DASH}100%) | 0% (0{DASH}7%) | under 0.01 | 59" in rows
    figure = shown.json["data-doses-harmful"]
    lines = {
        (trace["name"], trace.get("yaxis", "y")): trace for trace in figure["data"] if trace.get("hoverinfo") == "text"
    }
    found = lines["found", "y"]
    assert (found["x"], found["y"]) == ([-2, 0, 2], [0.96, 0.6, 0.02])
    assert lines["found", "y2"]["y"] == pytest.approx([0.01, 0.01, 0.27])
    assert lines["found", "y3"]["y"] == [0.31, 0.0, 0.4]
    assert lines["random, equal dose", "y"]["x"] == [-2, 0, 2], "equal dose stands at the alpha of the found neurons"
    assert lines["random, equal dose", "y"]["hovertext"][0].startswith(
        f"random, equal dose, alpha {MINUS}2 (32.8 on these neurons): 63%"
    )
    gray = {lines[name, "y"]["line"]["color"] for name in ("random, same alpha", "random, equal dose")}
    assert gray == {"#8C8C8C"}
    assert (
        len({lines[name, "y"]["line"]["dash"] for name in ("found", "random, same alpha", "random, equal dose")}) == 3
    )
    low, high = (trace for trace in figure["data"] if trace["hoverinfo"] == "skip" and trace["yaxis"] == "y")
    assert low["y"] == pytest.approx([0.86, 0.5, 0.0])
    assert high["y"] == pytest.approx([1.0, 0.67, 0.09])
    assert figure["layout"]["yaxis3"]["range"] == shown.json["data-doses-benign"]["layout"]["yaxis3"]["range"]


def test_search_in_numbers(tmp_path: Path) -> None:
    shown = page(tmp_path, all_sections())
    for said in (
        "43 combinations",
        "Wanted: 97% of the prompts answered (toward conformity) or refused (toward rejection), with at most 3% broken",
        "Toward rejection: that is short of the 97% that were wanted.",
        "Toward conformity, jailbreakbench:alpaca: harmful prompts",
    ):
        assert said in shown.text
    tables, _ = tables_of(RunResults.of(all_sections()), "search")
    (chosen,) = [one for one in tables if "The smallest intervention" in one.title]
    names = [column.name for column in chosen.columns]
    assert "answered or refused" in names
    # That is another number: of the prompts whose answer changed.
    assert "moved" not in names
    rows = Rows(shown.source).found
    assert "conformity | 58 | 0.05% | 0.02% | 2.35 | 1 | 4 | 98% | 0%" in rows
    assert "rejection | 58 | 0.05% | 0.02% | 2.35 | 1 | 4 | 81% | 0%" in rows
    assert f"base | {DASH} | 37% (27{DASH}44%) | 1% | {DASH} | 0.27 | {DASH} | {DASH} | 59" in rows
    assert f"found | 2.35 | 94% (84{DASH}100%) | 1% | 55% (45{DASH}62%) | 0.27 | 0.31 | {DASH} | 59" in rows
    moved = f"1% | 55% (45{DASH}62%) | 0.27"
    assert f"random, equal dose | 33.75 | 43% (33{DASH}50%) | {moved} | {DASH} | 3.5e-08 | 59" in rows
    assert f"random, equal KL | 99.50 | 35% (25{DASH}42%) | {moved} | 0.20 (not reached) | 3.5e-08 | 59" in rows
    # Both random sets count as one, and both directions alike.
    assert "jailbreakbench:alpaca | random, equal KL | 40% | 55%" in rows
    assert "467 | 0.4% | 2.35 | 1 | 4 | 100% | 20% | 0.30" in rows
    tried, beyond, chosen = shown.json["data-search-1"]["data"]
    assert (tried["x"], tried["y"]) == ([0.02], [0.3])
    assert (beyond["name"], beyond["x"]) == ("beyond the limits", [0.4])
    assert (chosen["name"], chosen["x"], chosen["y"]) == ("chosen", [0.05], [0.98])
    assert shown.json["data-search-1"]["layout"]["xaxis"]["type"] == "log"


def test_a_search_that_kept_to_no_limit_says_so(tmp_path: Path) -> None:
    results = all_sections()
    one = results["search"]["directions"][0]
    one["chosen"] = one["trials"][1]
    assert "no trial kept to the limits" in page(tmp_path, results).text


def test_a_search_without_distances_is_shown(tmp_path: Path) -> None:
    results = all_sections()
    results["search"]["limits"]["kl_divergence"] = None
    for one in results["search"]["directions"]:
        for tried in (one["chosen"], *one["trials"]):
            tried["side_kl_divergence"] = None
    shown = page(tmp_path, results)
    assert "with at most 3% broken answers. Random neurons" in shown.text
    assert f"58 | 0.05% | 2.35 | 1 | 4 | 98% | 0% | {DASH}" in Rows(shown.source).found


def test_guard_in_numbers(tmp_path: Path) -> None:
    shown = page(tmp_path, all_sections())
    for said in (
        "The guard decides in layer 12 by 1,412 neurons",
        "254 harmful, 301 ordinary and 112 borderline or attacked harmless requests",
        "Detectors of harmful requests, test: 59 harmful, 61 safe",
    ):
        assert said in shown.text
    rows = Rows(shown.source).found
    shares = f"76% (66{DASH}83%) | 87% (77{DASH}94%)"
    assert (
        f"guard (found neurons to layer 12) | 0.987 (0.89{DASH}1.00) | {shares} | 83% (73{DASH}90%) | 2% (0{DASH}9%)"
        in rows
    )
    assert f"last hidden state | over 0.999 (0.90{DASH}1.00) | {shares} | {DASH} | {DASH}" in rows
    assert f"contrast | harmful | 62% (52{DASH}69%) | 93% (83{DASH}100%) | 59" in rows
    figure = shown.json["data-detectors"]
    assert [trace["x"] for trace in figure["data"]] == [[0.987] * 2, [0.9998] * 2, [0.41] * 2]
    assert figure["data"][0]["error_x"]["arrayminus"] == pytest.approx([0.1, 0.1])
    assert figure["layout"]["xaxis"]["range"][0] < 0.31, "an interval below chance is not cut off"
    assert figure["layout"]["yaxis"]["ticktext"] == ["test", "contrast"]
    results = all_sections()
    results["guard"]["rows"] = []
    assert "Refused without and with the guard" not in page(tmp_path, results).text


def test_figures_have_text_alternatives() -> None:
    made = {
        figure.name: figure.alternative
        for figure in experiment_figures.figures(RunResults.of(all_sections()))
        if figure
    }
    assert {f"data-{name}" for name in made} == FIGURES
    assert "found at alpha \N{MINUS SIGN}2: 96%, +2: 2%" in made["doses-harmful"]
    assert "base at alpha 0: 4%" in made["doses-benign"]
    assert "3 trials, 1 of them beyond the limits. Chosen: 58 neurons (0.05%), alpha 2.35" in made["search-1"]
    assert "contrast, guard (found neurons to layer 12): 0.987" in made["detectors"]


def test_hostile_names_are_shown_and_not_run(tmp_path: Path) -> None:
    results = whole_run()
    sections = ("dose_response", "search", "guard")
    whole = page(tmp_path, all_sections())
    shown = page(tmp_path, results | {name: poisoned(all_sections()[name]) for name in sections})
    assert [tag for tag, _ in shown.tags if tag == "img"] == []
    count = [len([tag for tag, _ in one.tags if tag == "script"]) for one in (whole, shown)]
    assert count[0] == count[1]
    assert shown.text.count("<script>alert(1)</script>") > 5
    own = shown.source[shown.source.index("<body>") :].replace(shown.scripts[0], "")
    assert not any(hidden in own for hidden in "\u202e\u2028\x07\ufffd")
    assert "W" * 3000 not in shown.source
    for name in FIGURES:
        figure = shown.json[name]
        drawn = [trace.get("name") or "" for trace in figure["data"]]
        drawn += [said for trace in figure["data"] for said in trace.get("hovertext") or []]
        drawn += figure["layout"].get("yaxis", {}).get("ticktext") or []
        assert not any("<" in one for one in drawn)


def test_many_rows_are_cut(tmp_path: Path) -> None:
    results = all_sections()
    results["dose_response"]["rows"] *= 1000
    results["guard"]["detectors"] *= 1000
    for one in results["search"]["directions"]:
        one["trials"] = [trial(0.1, 0.5)] * 5000
        one["tests"] *= 1000
    assert len(page(tmp_path, results).source) < 9_000_000


def test_alphas_and_small_numbers() -> None:
    assert [text.alpha(value) for value in (-1.5, 0.0, 2.0)] == ["\N{MINUS SIGN}1.5", "0", "+2"]
    assert [text.nats(value) for value in (None, 0.0, 0.004, 1.234)] == [DASH, "0.00", "under 0.01", "1.23"]
    assert [text.auroc(value) for value in (None, 0.98765, 0.9996, 1.0)] == [DASH, "0.988", "over 0.999", "1.000"]


def test_one_sided_alphas_and_missing_numbers_are_drawn(tmp_path: Path) -> None:
    results = all_sections()
    rows = [copy.deepcopy(row) for row in results["dose_response"]["rows"] if row["alpha"] > 0]
    for row in rows:
        row["kl_divergence"] = {"value": None, "low": None, "high": None}
    results["dose_response"]["rows"] = rows
    figure = page(tmp_path, results).json["data-doses-benign"]
    assert figure["layout"]["yaxis3"]["range"] == [0, 1]
    assert "base" not in [trace.get("name") for trace in figure["data"]]
