"""The dose-response, the search for the smallest push and the guard on the page: there, absent, and hostile."""

import copy
import importlib.util
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.report import causal_figures, causal_tables, summary, text

# The parsed page and the results of a run are those of the other test of the page.
_SPEC = importlib.util.spec_from_file_location("report_page", Path(__file__).with_name("test_report.py"))
assert _SPEC
assert _SPEC.loader
base = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(base)

FIGURES = {"data-doses-harmful", "data-doses-benign", "data-search-1", "data-search-2", "data-detectors"}
HOSTILE = base.PAYLOAD
DASH = "\N{EN DASH}"


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.07)}


def outcome(refused: float, answered: float, kl_divergence: float) -> dict[str, Any]:
    nothing = {"value": kl_divergence, "low": None, "high": None}
    return {
        "n": 59,
        "refused": share(refused),
        "answered": share(answered),
        "broken": share(1 - refused - answered),
        "kl_divergence": nothing
        if not kl_divergence
        else nothing | {"low": kl_divergence / 2, "high": 2 * kl_divergence},
        "nll": nothing,
    }


def dose_response() -> dict[str, Any]:
    rows = []
    for alpha, subject, used, harmful, benign in (
        (-2.0, "found", 2.0, outcome(0.96, 0.03, 0.31), outcome(0.88, 0.11, 0.5)),
        (-2.0, "random", 2.0, outcome(0.61, 0.38, 0.0004), outcome(0.05, 0.95, 0.0003)),
        (-2.0, "random, equal dose", 32.75, outcome(0.63, 0.36, 0.02), outcome(0.15, 0.84, 0.02)),
        (0.0, "base", 0.0, outcome(0.6, 0.39, 0.0), outcome(0.04, 0.95, 0.0)),
        (2.0, "found", 2.0, outcome(0.02, 0.71, 0.4), outcome(0.0, 1.0, 0.25)),
        (2.0, "random", 2.0, outcome(0.59, 0.4, 0.0003), outcome(0.05, 0.95, 0.0003)),
        (2.0, "random, equal dose", 32.75, outcome(0.52, 0.47, 0.02), outcome(0.05, 0.95, 0.02)),
    ):
        for prompts, measured in (("harmful", harmful), ("benign", benign)):
            rows.append({"alpha": alpha, "subject": subject, "prompts": prompts, "alpha_used": used} | measured)
    return {
        "rows": rows,
        "on": "sorry:alpaca",
        "neurons": 1171,
        "equal_dose_factor": 16.375,
        "nll_limit": 2.5,
        "calibrate": {"alpha_conformity": 4.25, "layers": None},
    }


def trial(percent: float, moved: float, broken: float = 0.0) -> dict[str, Any]:
    size = {"neurons": round(percent * 1167), "share_of_neurons": percent / 100, "share_of_parameters": percent / 250}
    knobs = {"percent": percent, "alpha": 2.345, "prompt_positions": 1, "generated_tokens": 4}
    return knobs | size | {"dose": 9.0, "moved": moved, "broken": broken, "side_kl_divergence": 0.3}


def search() -> dict[str, Any]:
    found = []
    for toward, moving, staying, moved in (
        ("conformity", "harmful", "benign", 0.98),
        ("rejection", "benign", "harmful", 0.81),
    ):
        rows = []
        for subject, hit, more in (
            ("base", 0.37, {}),
            ("found", 0.94, {}),
            ("random", 0.36, {"alpha": 2.345, "p_value": 1.25e-9}),
            ("random, equal dose", 0.43, {"alpha": 33.75, "p_value": 3.5e-8}),
        ):
            other = 0.99 - hit
            reached = outcome(other, hit, 0.4) if toward == "conformity" else outcome(hit, other, 0.4)
            rows.append(
                {"subject": subject, "moving": reached, "staying": outcome(0.1, 0.9, 0.27), "moved": share(0.55)} | more
            )
        chosen = trial(0.05, moved)
        found.append(
            {
                "toward": toward,
                "chosen": chosen,
                "push": {key: chosen[key] for key in ("neurons", "share_of_neurons", "share_of_parameters", "dose")},
                "trials": [trial(0.02, 0.3), trial(0.4, 1.0, broken=0.2), chosen],
                "tests": [{"on": "jailbreakbench:alpaca", "moving": moving, "staying": staying, "rows": rows}],
            }
        )
    limits = {"target": 0.97, "broken": 0.03, "kl_divergence": 1.0, "percent": 0.5, "alpha": 6.0}
    asked = {"harmful": 20, "benign": 20}
    return {"score": "write-contrast", "trials": 43, "limits": limits, "validation": asked, "directions": found}


def guard() -> dict[str, Any]:
    detectors = []
    for name, value in (("guard (found neurons to layer 12)", 0.987), ("last hidden state", 0.9998), ("other", 0.41)):
        for test in ("test", "contrast"):
            row = {"detector": name, "on": test, "harmful": 59, "benign": 61, "auroc": share(value)}
            row |= {"tpr_at_0.01": share(0.76), "tpr_at_0.05": share(0.87)}
            if name.startswith("guard"):
                row |= {"flagged_harmful": share(0.83), "flagged_benign": share(0.02)}
            detectors.append(row)
    before, after = ({"refused": share(value), "answered": share(1 - value), "unscored": 0} for value in (0.62, 0.93))
    return {
        "layer": 12,
        "deciding_neurons": 1412,
        "false_positive_rate": 0.01,
        "threshold": 1.5,
        "penalty": 0.001,
        "learnt": {"harmful": 254, "benign": 301, "borderline": 112},
        "neurons": 1800,
        "alpha": 3.0,
        "doses": [
            {"alpha": alpha, "attack_success": success, "over_refusal": refused}
            for alpha, success, refused in ((0.0, 0.62, 0.0), (2.0, 0.31, 0.04), (3.0, 0.13, 0.05))
        ],
        "knobs": {"prompt_positions": 5, "layers": [12, 23]},
        "detectors": detectors,
        "rows": [{"on": "contrast", "prompts": "harmful", "n": 59, "base": before, "guarded": after}],
    }


def all_sections() -> dict[str, Any]:
    results: dict[str, Any] = base.whole_run()
    return results | {"dose_response": dose_response(), "search": search(), "guard": guard()}


class Rows(HTMLParser):
    """The rows of a page's tables, each cell's text with single spaces and cells joined by bars."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._cells: list[str] = []
        self.feed(source[source.index("<body") : source.index("</main>")])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self._cells = []
        elif tag in ("td", "th"):
            self._cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self.found.append(" | ".join(" ".join(cell.split()) for cell in self._cells))

    def handle_data(self, data: str) -> None:
        if self._cells:
            self._cells[-1] += data


def test_sections_are_there(tmp_path: Path) -> None:
    shown = base.page(tmp_path, all_sections())
    assert shown.ids() == base.SECTIONS
    assert set(shown.json) >= FIGURES
    assert ("a", {"href": "#guard"}) in shown.tags
    assert shown.text.count("not here yet") == 1, "only the grid is missing"
    for heading in ("How hard must they be pushed?", "The smallest push that works", "In action"):
        assert heading in shown.text


def test_without_them_the_page_is_as_before(tmp_path: Path) -> None:
    shown = base.page(tmp_path, base.whole_run())
    assert shown.ids() == base.SECTIONS
    assert not FIGURES & set(shown.json)
    assert "How hard must they be pushed?" not in shown.text
    assert "The smallest push that works" not in shown.text
    assert shown.text.count("not here yet") == 2
    assert "The guard is not here yet: safety-neurons guard RUN_DIR makes and tests it." in shown.text


@pytest.mark.parametrize("name", ["dose_response", "search", "guard"])
def test_each_stands_alone(tmp_path: Path, name: str) -> None:
    results = base.partial_run()
    shown = base.page(tmp_path, results | {name: all_sections()[name]})
    part = {"dose_response": "doses", "search": "search", "guard": "detectors"}[name]
    assert set(shown.json) == {"data-layers"} | {one for one in FIGURES if part in one}
    assert ("The tests of cause are not here yet" in shown.text) == (name == "guard")
    untested = "whether they cause refusals is not tested yet"
    assert (untested in summary.verdict(results | {name: all_sections()[name]}).sentence) == (name == "guard")


def test_dose_response_in_numbers(tmp_path: Path) -> None:
    shown = base.page(tmp_path, all_sections())
    for said in (
        "1,171 found neurons",
        "an alpha 16.4 times as high",
        "Prompts: sorry:alpaca",
        "more than 2.5 nats per token",
        "calibrate.alpha_conformity",
    ):
        assert said in shown.text
    rows = Rows(shown.source).found
    minus = "\N{MINUS SIGN}"
    assert f"{minus}2 | found | 96% 86{DASH}100% | 3% 0{DASH}10% | 1% 0{DASH}8% | 0.31 | 59" in rows
    assert (
        f"{minus}2 | random, equal dose (32.8) | 63% 53{DASH}70% | 36% 26{DASH}43% | 1% 0{DASH}8% | 0.02 | 59" in rows
    )
    assert f"+2 | random | 5% 0{DASH}12% | 95% 85{DASH}100% | 0% 0{DASH}7% | under 0.01 | 59" in rows
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
        "random, equal dose, alpha \N{MINUS SIGN}2 (32.8 on these neurons): 63%"
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
    shown = base.page(tmp_path, all_sections())
    for said in (
        "43 combinations",
        "Toward conformity: when the first 58 neurons by write-contrast (0.05% of all neurons, 0.02% of the weights) "
        "are pushed with alpha 2.35 at the last prompt position and 4 generated tokens, 98% of the harmful validation "
        "prompts are answered, and 0% of the answers are broken.",
        "81% of the benign validation prompts are refused, and 0% of the answers are broken; that is short of the 97%",
        "Toward conformity, jailbreakbench:alpaca: 59 harmful prompts.",
    ):
        assert said in shown.text
    rows = Rows(shown.source).found
    assert f"base | {DASH} | 37% 27{DASH}44% | 1% | {DASH} | 0.27 | {DASH}" in rows
    assert f"found | 2.35 | 94% 84{DASH}100% | 1% | 55% 45{DASH}62% | 0.27 | {DASH}" in rows
    assert f"random, equal dose | 33.75 | 43% 33{DASH}50% | 1% | 55% 45{DASH}62% | 0.27 | 3.5e-08" in rows
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
    assert "no trial kept to the limits" in base.page(tmp_path, results).text


def test_a_search_without_distances_is_shown(tmp_path: Path) -> None:
    results = all_sections()
    results["search"]["limits"]["kl_divergence"] = None
    for one in results["search"]["directions"]:
        for tried in (one["chosen"], *one["trials"]):
            tried["side_kl_divergence"] = None
    shown = base.page(tmp_path, results)
    assert "with at most 3% broken answers. The tables" in shown.text
    assert f"58 | 0.05% | 2.35 | 1 | 4 | 98% | 0% | {DASH}" in Rows(shown.source).found


def test_guard_in_numbers(tmp_path: Path) -> None:
    shown = base.page(tmp_path, all_sections())
    for said in (
        "It decides in layer 12 by 1,412 neurons",
        "254 harmful, 301 ordinary and 112 borderline or disguised harmless requests",
        "test (59 harmful, 61 safe)",
    ):
        assert said in shown.text
    rows = Rows(shown.source).found
    shares = f"76% 66{DASH}83% | 87% 77{DASH}94%"
    assert (
        f"guard (found neurons to layer 12) | 0.987 0.89{DASH}1.00 | {shares} | 83% 73{DASH}90% | 2% 0{DASH}9%" in rows
    )
    assert f"last hidden state | over 0.999 0.90{DASH}1.00 | {shares} | {DASH} | {DASH}" in rows
    assert f"contrast | harmful | 62% 52{DASH}69% | 93% 83{DASH}100% | 0 / 0 | 59" in rows
    figure = shown.json["data-detectors"]
    assert [trace["x"] for trace in figure["data"]] == [[0.987] * 2, [0.9998] * 2, [0.41] * 2]
    assert figure["data"][0]["error_x"]["arrayminus"] == pytest.approx([0.1, 0.1])
    assert figure["layout"]["xaxis"]["range"][0] < 0.31, "an interval below chance is not cut off"
    assert figure["layout"]["yaxis"]["ticktext"] == ["test", "contrast"]
    results = all_sections()
    results["guard"]["rows"] = []
    assert "In action" not in base.page(tmp_path, results).text


def test_figures_have_text_alternatives() -> None:
    made = {figure.name: figure.alternative for figure in causal_figures.figures(all_sections()) if figure}
    assert {f"data-{name}" for name in made} == FIGURES
    assert "found at alpha \N{MINUS SIGN}2: 96%, +2: 2%" in made["doses-harmful"]
    assert "base at alpha 0: 4%" in made["doses-benign"]
    assert "3 trials, 1 of them beyond the limits. Chosen: 58 neurons (0.05%), alpha 2.35" in made["search-1"]
    assert "contrast, guard (found neurons to layer 12): 0.987" in made["detectors"]


def hostile(value: Any, key: str = "") -> Any:
    """Every text replaced by an attack on the page, but what decides how a section is read."""
    if isinstance(value, dict):
        return {name: hostile(content, name) for name, content in value.items()}
    if isinstance(value, list):
        return [hostile(content, key) for content in value]
    kept = key == "prompts" or value in ("base", "found")
    return value if kept or not isinstance(value, str) else value + HOSTILE + "W" * 1_000_000


def test_hostile_names_are_shown_and_not_run(tmp_path: Path) -> None:
    results = base.whole_run()
    sections = ("dose_response", "search", "guard")
    whole = base.page(tmp_path, all_sections())
    shown = base.page(tmp_path, results | {name: hostile(all_sections()[name]) for name in sections})
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
    assert len(base.page(tmp_path, results).source) < 9_000_000


def test_alphas_and_small_numbers() -> None:
    assert [causal_tables.alpha(value) for value in (-1.5, 0.0, 2.0)] == ["\N{MINUS SIGN}1.5", "0", "+2"]
    assert [text.nats(value) for value in (None, 0.0, 0.004, 1.234)] == [DASH, "0.00", "under 0.01", "1.23"]
    assert [text.auroc(value) for value in (None, 0.98765, 0.9996, 1.0)] == [DASH, "0.988", "over 0.999", "1.000"]


def test_one_sided_alphas_and_missing_numbers_are_drawn(tmp_path: Path) -> None:
    results = all_sections()
    rows = [copy.deepcopy(row) for row in results["dose_response"]["rows"] if row["alpha"] > 0]
    for row in rows:
        row["kl_divergence"] = {"value": None, "low": None, "high": None}
    results["dose_response"]["rows"] = rows
    figure = base.page(tmp_path, results).json["data-doses-benign"]
    assert figure["layout"]["yaxis3"]["range"] == [0, 1]
    assert "base" not in [trace.get("name") for trace in figure["data"]]
