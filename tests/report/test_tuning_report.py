"""The search for tuning's settings, validation, and the tuned model under calibration: there, absent, and hostile."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.report import tuning_figures, tuning_tables

# The parsed page, its tables, and the results of a run are those of the other tests of the page.
_SPEC = importlib.util.spec_from_file_location("causal_report_page", Path(__file__).with_name("test_causal_report.py"))
assert _SPEC
assert _SPEC.loader
causal = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(causal)
base = causal.base

FIGURES = {"data-auto", "data-validation"}
DASH = "\N{EN DASH}"


def trial(number: int, attacks: float, refusals: float, moved: float) -> dict[str, Any]:
    settings = {
        "find.score": "gradient",
        "find.percent": 0.1 * (number + 1),
        "tune.learning_rate": 0.00123,
        "tune.refusals": 96,
        "tune.contrast": 14,
        "tune.benign": 108 + number,
        "tune.kl": 0.3,
    }
    objectives = {"attack_success": attacks, "over_refusal": refusals, "kl_divergence": moved}
    return {"number": number, "settings": settings, "objectives": objectives}


def auto() -> dict[str, Any]:
    return {
        "base": {"attack_success": 0.72, "over_refusal": 0.0},
        "trials": [trial(0, 0.4, 0.05, 0.11), trial(1, 0.15, 0.02, 0.06), trial(3, 0.03, 0.21, 0.4)],
        "left_out": 1,
        "front": [1, 3],
        "max_over_refusal": None,
        "chosen": 1,
        "tuned": {"attack_success": 0.17, "over_refusal": 0.03, "kl_divergence": 0.07},
    }


def validation() -> list[dict[str, Any]]:
    rates = ((25, 0.5, 0.01), (50, 0.2, 0.05), (75, 0.2, 0.05), (100, 0.3, 0.4))
    return [{"step": step, "attack_success": attacks, "over_refusal": refusals} for step, attacks, refusals in rates]


def adaptive() -> dict[str, Any]:
    rows = []
    for model, calibrated, answered in (
        ("base", "none", 0.3),
        ("base", "found", 0.9),
        ("tuned", "none", 0.04),
        ("tuned", "found before tuning", 0.35),
        ("tuned", "found afresh", 0.62),
    ):
        for prompts in ("harmful", "benign"):
            outcome = causal.outcome(0.97 - answered, answered, 0.21)
            rows.append({"model": model, "calibrated": calibrated, "prompts": prompts} | outcome)
    return {"rows": rows, "on": "harmful:benign", "calibrate": {"alpha_conformity": 4.0}}


def searched_run() -> dict[str, Any]:
    results: dict[str, Any] = base.whole_run() | {"auto": auto(), "adaptive": adaptive()}
    results["training"]["validation"] = validation()
    return results


def test_parts_are_there(tmp_path: Path) -> None:
    shown = base.page(tmp_path, searched_run())
    assert shown.ids() == base.SECTIONS
    assert set(shown.json) >= FIGURES
    assert "How tuning was chosen" in shown.text
    assert "When the attacker can reach inside" in shown.text


def test_without_them_the_page_is_as_before(tmp_path: Path) -> None:
    results = base.whole_run()
    plain = base.page(tmp_path, results).source
    results["training"]["validation"] = []
    shown = base.page(tmp_path, results)
    assert shown.source == plain
    assert not FIGURES & set(shown.json)
    assert "How tuning was chosen" not in shown.text
    assert "When the attacker can reach inside" not in shown.text


@pytest.mark.parametrize("name", ["auto", "adaptive"])
def test_each_stands_alone(tmp_path: Path, name: str) -> None:
    shown = base.page(tmp_path, base.partial_run() | {name: searched_run()[name]})
    assert ("How tuning was chosen" in shown.text) == (name == "auto")
    assert ("When the attacker can reach inside" in shown.text) == (name == "adaptive")


def test_search_in_numbers(tmp_path: Path) -> None:
    shown = base.page(tmp_path, searched_run())
    assert "3 settings were tried, and 1 more that could not be trained" in shown.text
    assert "knee, which is nearest to the best of all three" in shown.text
    rows = causal.Rows(shown.source).found
    assert "base | 72% | 0% | 0.00" in rows
    assert "1, chosen | gradient | 0.2% | 1.2e-03 | 96+14+109 | 0.3 | 15% | 2% | 0.06" in rows
    assert "the run, tuned so | 17% | 3% | 0.07" in rows
    other = "0 | gradient | 0.1% | 1.2e-03 | 96+14+108 | 0.3 | 40% | 5% | 0.11"
    assert rows.index(other) > rows.index("the run, tuned so | 17% | 3% | 0.07")
    front, tried, chosen, tuned, start = shown.json["data-auto"]["data"]
    assert (front["x"], front["y"]) == ([0.02, 0.21], [0.15, 0.03])
    assert (tried["x"], tried["y"]) == ([0.05, 0.02, 0.21], [0.4, 0.15, 0.03])
    assert tried["marker"]["color"] == [0.11, 0.06, 0.4]
    assert (chosen["x"], chosen["y"]) == ([0.02], [0.15])
    assert (tuned["x"], tuned["y"]) == ([0.03], [0.17])
    assert (start["x"], start["y"], start["marker"]["symbol"]) == ([0.0], [0.72], "x-thin")
    ends = [shown.json["data-auto"]["layout"][axis]["range"][1] for axis in ("xaxis", "yaxis")]
    assert ends == pytest.approx([0.21 * 1.06, 0.72 * 1.06])


def test_limit_of_over_refusal_is_said(tmp_path: Path) -> None:
    results = searched_run()
    results["auto"] |= {"max_over_refusal": 0.025, "left_out": 0}
    shown = base.page(tmp_path, results).text
    assert "of those with an over-refusal of at most 2.5%" in shown
    assert "could not be trained" not in shown


def test_a_search_without_any_difference_is_drawn(tmp_path: Path) -> None:
    results = searched_run()
    results["auto"] |= {"trials": [trial(0, 0.0, 0.0, 0.0)], "front": [0], "chosen": 0}
    figure = base.page(tmp_path, results).json["data-auto"]
    assert figure["layout"]["xaxis"]["range"][1] > 0
    assert figure["data"][1]["marker"]["cmax"] > 0


def test_validation_stands_beside_the_loss(tmp_path: Path) -> None:
    shown = base.page(tmp_path, searched_run())
    attacks, refusals = shown.json["data-validation"]["data"]
    assert attacks["x"] == refusals["x"] == [25, 50, 75, 100]
    assert attacks["y"] == [0.5, 0.2, 0.2, 0.3]
    assert refusals["y"] == [0.01, 0.05, 0.05, 0.4]
    (kept,) = shown.json["data-validation"]["layout"]["shapes"]
    assert kept["x0"] == kept["x1"] == 75, "the later ones of equally good weights are kept"


def test_calibration_of_the_tuned_model_in_numbers(tmp_path: Path) -> None:
    rows = causal.Rows(base.page(tmp_path, searched_run()).source).found
    assert f"tuned | found afresh | harmful | 62% 52{DASH}69% | 35% 25{DASH}42% | 3% 0{DASH}10% | 0.21 | 59" in rows
    assert sum(row.startswith(("tuned | found", "base | found |")) for row in rows) == 6


def test_figures_have_text_alternatives() -> None:
    made = {figure.name: figure.alternative for figure in tuning_figures.figures(searched_run()) if figure}
    assert made.keys() == {"loss", "validation", "auto"}
    assert "3 trials, 2 of them on the Pareto front: trial 1, gradient, 0.2% of the neurons: 15%" in made["auto"]
    assert "50% and 1% at step 25, 20% and 5% at step 75, whose weights were kept" in made["validation"]


def test_hostile_names_are_shown_and_not_run(tmp_path: Path) -> None:
    whole = base.page(tmp_path, searched_run())
    results = searched_run()
    shown = base.page(tmp_path, results | {name: causal.hostile(results[name]) for name in ("auto", "adaptive")})
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
    results["auto"]["trials"] = [trial(number, 0.1, 0.1, 0.1) for number in range(5000)]
    results["auto"] |= {"front": list(range(5000)), "chosen": 4321}
    results["adaptive"]["rows"] *= 1000
    results["training"]["validation"] = [
        {"step": step, "attack_success": 0.1, "over_refusal": 0.1} for step in range(20_000)
    ]
    assert len(base.page(tmp_path, results).source) < 9_000_000
    assert sum(one.chosen for one in tuning_tables.tried(results)) == 1
