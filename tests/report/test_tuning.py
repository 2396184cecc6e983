"""The search for settings, the selection of pass and scale, the tuned model calibrated: there, absent, hostile."""

from pathlib import Path
from typing import Any

import pytest

from builders.report import (
    DASH,
    MINUS,
    SECTIONS,
    Rows,
    adaptive,
    auto,
    left_out,
    lengths,
    page,
    partial_run,
    poisoned,
    scale_curve,
    seeds,
    tuning_trial,
    whole_run,
)
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.report import RunResults, experiment_figures, experiment_tables, run_figures, summary, tables_of

FIGURES = {"data-auto", "data-scale-found", "data-scale-random"}


def searched_run() -> dict[str, Any]:
    results = whole_run() | {"auto": auto(), "adaptive": adaptive(), "seeds": seeds(), "left_out": left_out()}
    results["training"]["scale_curve"] = scale_curve()
    return results


def test_parts_are_there(tmp_path: Path) -> None:
    shown = page(tmp_path, searched_run())
    assert shown.ids() == SECTIONS
    assert set(shown.json) >= FIGURES
    assert "How tuning was chosen" in shown.text
    assert "When the attacker can reach inside" in shown.text


def test_without_them_the_page_is_as_before(tmp_path: Path) -> None:
    results = whole_run()
    plain = page(tmp_path, results).source
    results["training"]["scale_curve"] = None
    shown = page(tmp_path, results)
    assert shown.source == plain
    assert not FIGURES & set(shown.json)
    assert "How tuning was chosen" not in shown.text
    assert "When the attacker can reach inside" not in shown.text


@pytest.mark.parametrize("name", ["auto", "adaptive", "left_out"])
def test_each_stands_alone(tmp_path: Path, name: str) -> None:
    shown = page(tmp_path, partial_run() | {name: searched_run()[name]})
    assert ("How tuning was chosen" in shown.text) == (name == "auto")
    assert ("When the attacker can reach inside" in shown.text) == (name == "adaptive")
    assert ("Attacks of a kind that training left out" in shown.text) == (name == "left_out")


def test_left_out_kinds_in_numbers(tmp_path: Path) -> None:
    rows = Rows(page(tmp_path, searched_run()).source).found
    assert any(row.startswith("rules | 80%") and "+18" in row and "150" in row for row in rows)
    assert any(row.startswith("mean | 80%") for row in rows)


def test_openings_of_other_kinds_are_told_where_this_kind_was_left_out() -> None:
    found = left_out()
    for kind in ("story", "opening"):
        found["rows"][0]["kind"] = kind
        _, notes = tables_of(RunResults.of(whole_run() | {"left_out": found}), "left_out")
        assert any("stays partly known" in note for note in notes) is (kind == "opening")


def test_longer_answers_in_numbers(tmp_path: Path) -> None:
    assert "Longer answers" not in page(tmp_path, searched_run()).text
    shown = page(tmp_path, searched_run() | {"lengths": lengths()})
    assert "Longer answers" in shown.text
    assert "none, harmful" not in shown.text
    assert "none, other, harmful: No weights." in shown.text
    rows = Rows(shown.source).found
    rate = f"40% (30{DASH}47%), 1 unscored"
    assert f"none | attack success | 24 | {rate} | {MINUS}20 ({MINUS}35 to {MINUS}5) | 10" in rows
    assert f"none | attack success | 256 | {rate} | {DASH} | 10" in rows
    assert f"none | prefill | harmful | {rate} | {rate} | {rate} | 10% (0{DASH}17%), 1 unscored | 10" in rows


def test_search_in_numbers(tmp_path: Path) -> None:
    shown = page(tmp_path, searched_run())
    assert "3 settings were tried, and 1 more that could not be trained" in shown.text
    assert "of those with an over-refusal of at most 2.5%" in shown.text
    rows = Rows(shown.source).found
    assert "base |  |  |  |  |  | 72% | 0% | 0.00" in rows
    assert "1, chosen | gradient | 0.2% | 1.2e-03 | 96+14+109 | 0.3 | 15% | 2% | 0.06" in rows
    assert "the run |  |  |  |  |  | 17% | 3% | 0.07" in rows
    other = "0 | gradient | 0.1% | 1.2e-03 | 96+14+108 | 0.3 | 40% | 5% | 0.11"
    assert rows.index(other) > rows.index("the run |  |  |  |  |  | 17% | 3% | 0.07")
    front, tried, chosen, tuned, start = shown.json["data-auto"]["data"]
    assert (front["x"], front["y"]) == ([0.02, 0.21], [0.15, 0.03])
    assert (tried["x"], tried["y"]) == ([0.05, 0.02, 0.21], [0.4, 0.15, 0.03])
    assert tried["marker"]["color"] == [0.11, 0.06, 0.4]
    assert (chosen["x"], chosen["y"]) == ([0.02], [0.15])
    assert (tuned["x"], tuned["y"]) == ([0.03], [0.17])
    assert (start["x"], start["y"], start["marker"]["symbol"]) == ([0.0], [0.72], "x-thin")
    ends = [shown.json["data-auto"]["layout"][axis]["range"][1] for axis in ("xaxis", "yaxis")]
    assert ends == pytest.approx([0.21 * 1.06, 0.72 * 1.06])


def test_a_search_without_any_difference_is_drawn(tmp_path: Path) -> None:
    results = searched_run()
    results["auto"] |= {"trials": [tuning_trial(0, 0.0, 0.0, 0.0)], "front": [0], "chosen": 0}
    figure = page(tmp_path, results).json["data-auto"]
    assert figure["layout"]["xaxis"]["range"][1] > 0
    assert figure["data"][1]["marker"]["cmax"] > 0


def test_the_selection_in_numbers(tmp_path: Path) -> None:
    shown = page(tmp_path, searched_run())
    attacks, *others = shown.json["data-scale-found"]["data"]
    assert (attacks["x"], attacks["y"]) == ([0.0, 0.5, 1.0], [0.72, 0.3, 0.04]), "the last pass, from the base model on"
    assert [trace["x"] for trace in others if trace["mode"] != "markers"] == [[0.0, 0.5, 1.0, 1.5]] * 2
    assert [trace["y"] for trace in others if trace["mode"] == "markers"] == [[0.4], [0.05], [0.3]]
    (selected,) = shown.json["data-scale-found"]["layout"]["shapes"]
    assert selected["x0"] == selected["x1"] == 1.0
    rows = [row for row in Rows(shown.source).found if row.startswith("2 | 1, selected | 4%")]
    assert len(rows) == 2, "found and random"
    assert "Tuning missed its margin" not in shown.text


def test_a_missed_margin_is_said_wherever_the_result_is(tmp_path: Path) -> None:
    results = searched_run()
    results["training"]["scale_curve"]["max_over_refusal"] = 0.0
    said = "Tuning missed its margin on validation prompts"
    assert page(tmp_path, results).text.count(said) >= 2
    made = RunResults.of(results)
    assert any(said in note for note in summary.verdict(made).notes)
    assert any(said in note for note in tables_of(made, "selection").notes)


@pytest.mark.parametrize(
    "change",
    [
        {"selected": 4},
        {"selected": 3},
        {"points": []},
        {"base": {"attack_success": None, "refused": {"benign": None}}},
    ],
    ids=str,
)
def test_a_damaged_curve_is_told(change: dict[str, Any]) -> None:
    results = searched_run()
    results["training"]["scale_curve"] |= change
    with pytest.raises(SafetyNeuronsError, match=r"damaged at training\.scale_curve"):
        RunResults.of(results)


def test_calibration_of_the_tuned_model_in_numbers(tmp_path: Path) -> None:
    rows = Rows(page(tmp_path, searched_run()).source).found
    assert (
        f"tuned | found afresh | harmful | 35% (25{DASH}42%) | 62% (52{DASH}69%) | 3% (0{DASH}10%) | 0.21 | 59" in rows
    )
    assert sum(row.startswith(("tuned | found", "base | found |")) for row in rows) == 6


def test_figures_have_text_alternatives() -> None:
    results = RunResults.of(searched_run())
    drawn = [*run_figures.figures(results), *experiment_figures.figures(results)]
    made = {figure.name: figure.alternative for figure in drawn if figure}
    assert made.keys() >= {"loss", "scale-found", "scale-random", "auto"}
    assert "3 trials, 2 of them on the Pareto front: trial 1, gradient, 0.2% of the neurons: 15%" in made["auto"]
    assert "pass 2 at scale 1. Attack success 72% → 4%; refused: benign 5% → 6%" in made["scale-found"]


def test_hostile_names_are_shown_and_not_run(tmp_path: Path) -> None:
    whole = page(tmp_path, searched_run())
    results = searched_run()
    shown = page(tmp_path, results | {name: poisoned(results[name]) for name in ("auto", "adaptive", "left_out")})
    assert [tag for tag, _ in shown.tags if tag == "img"] == []
    count = [len([tag for tag, _ in one.tags if tag == "script"]) for one in (whole, shown)]
    assert count[0] == count[1]
    assert shown.text.count("<script>alert(1)</script>") > 5
    own = shown.source[shown.source.index("<body>") :].replace(shown.scripts[0], "")
    assert not any(hidden in own for hidden in "\u202e\u2028\x07\ufffd")
    assert "W" * 3000 not in shown.source
    said = [said for trace in shown.json["data-auto"]["data"] for said in trace.get("hovertext") or []]
    assert said
    assert not any("<" in one for one in said)


def test_many_rows_are_cut(tmp_path: Path) -> None:
    results = searched_run()
    results["auto"]["trials"] = [tuning_trial(number, 0.1, 0.1, 0.1) for number in range(5000)]
    results["auto"] |= {"front": list(range(5000)), "chosen": 4321}
    results["adaptive"]["rows"] *= 1000
    results["training"]["scale_curve"]["points"] *= 5000
    assert len(page(tmp_path, results).source) < 9_000_000
    auto = RunResults.of(results).auto
    assert auto
    assert [one.number for one in experiment_tables.tuning_trials(auto)][-1] == 4321
