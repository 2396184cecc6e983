"""The page of a run: whole, partial and hostile results, parsed as a browser would."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from builders.report import DASH, SECTIONS, Rows, evaluation, example, full, page, partial_run, poisoned, whole_run
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.report import RunResults


def test_whole_run_has_all_sections_figures_and_numbers(tmp_path: Path) -> None:
    shown = page(tmp_path, whole_run())
    assert shown.ids() == SECTIONS
    assert set(shown.json) == {
        "data-layers",
        "data-vocabulary-rejection",
        "data-vocabulary-conformity",
        "data-causes-harmful",
        "data-causes-benign",
        "data-loss",
        "data-attacks",
        "data-refusals",
        "data-cells",
    }
    assert shown.text.count("not here yet") == 1, "only the guard, which is not a stage of a run, is missing"
    for number in (
        "2,335",
        "48%",
        "44\N{EN DASH}52%",
        "97",
        "a-new-attack",
        "byte for byte the same",
        "sha256:abc",
        "2.13.0",
    ):
        assert number in shown.text
    assert "safety-neurons run --seed 7" in shown.text
    assert "2 January 2026, 14:03 UTC" in shown.text
    assert "redacted: compliant answer to a harmful prompt" in shown.text
    assert shown.text.index("Sorry") < shown.text.index("qz"), "the deepest layer comes first"


def test_figures_show_the_rows_with_their_intervals(tmp_path: Path) -> None:
    figure = page(tmp_path, whole_run()).json["data-attacks"]
    before, after = figure["data"]
    assert before["x"] == [0.3, 0.66, 0.48]
    assert after["x"] == [0.02, 0.1, 0.06]
    assert before["error_x"]["array"] == pytest.approx([0.04] * 3)
    assert after["error_x"]["arrayminus"] == pytest.approx([0.02, 0.04, 0.04]), "an interval ends at zero"
    assert figure["layout"]["yaxis"]["ticktext"] == ["direct", "a-new-attack", "mean of the attacks"]


def test_figures_have_text_alternatives(tmp_path: Path) -> None:
    shown = page(tmp_path, whole_run())
    plots = [attributes for _, attributes in shown.tags if "data-figure" in attributes]
    assert len(plots) == 8
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in plots)
    attacks = next(attributes for attributes in plots if attributes["data-figure"] == "data-attacks")
    assert "a-new-attack, after: 10%" in str(attacks["aria-label"])


def test_vocabulary_test_is_shown_in_the_weighting_of_the_run(tmp_path: Path) -> None:
    results = whole_run()
    shown = page(tmp_path, results)
    rows = Rows(shown.source).found
    numbers = f"0.71 | 0.51 (0.40{DASH}0.62) | 0.001 | 0.53 | 0.52 | 0.88 | 1 of 2, first 1"
    assert f"rejection: refusal words | {numbers}" in rows
    assert "1,234 random sets" in shown.text
    assert "0.012" in shown.text
    assert "57%" in shown.text
    assert "away from" in shown.text
    assert "gladly" in shown.text
    low, high, together, single, lens = shown.json["data-vocabulary-rejection"]["data"]
    assert (low["y"], high["y"], high["fill"]) == ([0.4, 0.4], [0.62, 0.62], "tonexty")
    assert together["y"] == [0.55, 0.87]
    assert single["y"] == [0.53, 0.53]
    assert (lens["x"], lens["y"]) == ([0, 1, 2], pytest.approx([0.8, 0.85, 0.9]))
    results["run"]["settings"]["explain"] = {"weighting": "mean"}
    paper = page(tmp_path, results)
    assert any(row.startswith("rejection: refusal words | 0.76 |") for row in Rows(paper.source).found)
    assert "93%" in paper.text
    for one in results["vocabulary"]["overall"]:
        one["lens"] = None
    results["vocabulary"]["lens"] = []
    unread = page(tmp_path, results)
    assert any(f"| 0.52 | {DASH} | 1 of 2" in row for row in Rows(unread.source).found)
    assert len(unread.json["data-vocabulary-rejection"]["data"]) == 4


def test_words_of_an_older_run_are_shown_without_the_test(tmp_path: Path) -> None:
    results = whole_run()
    del results["vocabulary"], results["write_share"]
    shown = page(tmp_path, results)
    assert "Sorry" in shown.text
    assert "random sets" not in shown.text


def test_partial_run_says_which_stage_is_missing(tmp_path: Path) -> None:
    shown = page(tmp_path, partial_run())
    assert shown.ids() == SECTIONS
    assert set(shown.json) == {"data-layers"}
    assert "Found 2,335 safety neurons (1.0% of the weights)" in shown.text
    for command in ("explain RUN_DIR", "calibrate RUN_DIR", "tune RUN_DIR", "evaluate RUN_DIR", "guard RUN_DIR"):
        assert f"safety-neurons {command}" in shown.text
    assert "safety-neurons find RUN_DIR" not in shown.text


def test_a_run_without_anything_needs_no_plotly(tmp_path: Path) -> None:
    shown = page(tmp_path, {"schema": 3, "run": {}, "rows": []})
    assert shown.ids() == SECTIONS
    assert "Nothing is measured yet." in shown.text
    assert len(shown.source) < 100_000


@pytest.mark.parametrize("results", [whole_run(), partial_run(), poisoned(whole_run())], ids=["whole", "part", "bad"])
def test_page_is_self_contained(tmp_path: Path, results: dict[str, Any]) -> None:
    shown = page(tmp_path, results)
    for tag, attributes in shown.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            address = attributes.get(name) or ""
            assert address == "" or address.startswith(("#", "data:")), f"<{tag} {name}={address}>"
        assert not any(name.startswith("on") for name in attributes), f"<{tag}> has an event handler"
    assert "url(" not in shown.source.split("</style>")[0]
    assert "@import" not in shown.source.split("</style>")[0]
    assert len(shown.source.encode()) < 8_000_000
    assert sum("plotly.js v" in script[:500] for script in shown.scripts) == 1


def test_policy_allows_only_the_two_scripts(tmp_path: Path) -> None:
    shown = page(tmp_path, poisoned(whole_run()))
    policy = next(str(a["content"]) for _, a in shown.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert len(shown.scripts) == 2
    for script in shown.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_hostile_text_is_shown_and_not_run(tmp_path: Path) -> None:
    whole, hostile = page(tmp_path, whole_run()), page(tmp_path, poisoned(whole_run()))
    assert [tag for tag, _ in hostile.tags if tag == "img"] == []
    scripts = [attributes for tag, attributes in hostile.tags if tag == "script"]
    assert len(scripts) == len([tag for tag, _ in whole.tags if tag == "script"])
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>\\u202egpj\\u2028\\u0007\\ud800 {{ 7 * 7 }}WW" in (
        hostile.text
    )
    start = hostile.source.index("<body>")
    own = hostile.source[start:].replace(hostile.scripts[0], "")
    assert not any(hidden in own for hidden in "\u202e\u2028\x07\ufffd")
    assert "W" * 3000 not in hostile.source
    labels = hostile.json["data-attacks"]["layout"]["yaxis"]["ticktext"]
    assert labels[0].startswith("direct&lt;/script&gt;")
    assert not any("<" in label for label in labels)


def test_untrusted_text_cannot_reorder_its_surroundings(tmp_path: Path) -> None:
    results = whole_run()
    results["examples"] = [example("שלום prompt", "refusal \u2067 text", "refused")]
    shown = page(tmp_path, results)
    assert "<bdi>tiny</bdi>" in shown.source
    assert '<bdi class="passage">שלום prompt</bdi>' in shown.source
    assert '<bdi class="passage">refusal \\u2067 text</bdi>' in shown.source


def test_changed_weights_are_not_hidden(tmp_path: Path) -> None:
    results = whole_run()
    results["training"]["unchanged_outside"] = False
    shown = page(tmp_path, results)
    assert "byte for byte the same" not in shown.text
    assert "do not trust these numbers" in shown.text
    del results["training"]["unchanged_outside"]
    assert "was not checked" in page(tmp_path, results).text


def test_further_defenses_and_judges(tmp_path: Path) -> None:
    """The table has every judge; the headline and the figures stay with the first judge and the two defenses."""
    results = whole_run()
    section = results["evaluation"]
    section["judges"]["keywords"] = {"source": "-"}
    for cell in section["cells"]:
        cell["judges"]["keywords"] = cell["judges"]["refusal"] | {"value": 0.99}
    section["summary"] += [row | {"judge": "keywords"} for row in section["summary"]]
    extra = [cell | {"defense": "self-reminder"} for cell in section["cells"] if cell["defense"] == "none"]
    section["cells"] += extra
    section["defenses"]["self-reminder"] = {"source": "-"}
    shown = page(tmp_path, results)
    assert "self-reminder" in shown.text
    assert "keywords" in shown.text
    assert "from 48% to 6%" in shown.text
    drawn = shown.json["data-attacks"]["data"]
    assert [trace["name"] for trace in drawn] == ["before", "after"]
    assert 0.99 not in [value for trace in drawn for value in trace["x"]]


def test_an_evaluation_without_the_tuned_model_says_what_is_missing(tmp_path: Path) -> None:
    section = evaluation({"direct": (0.3, 0.2)}, (0.3, 0.2), {"benign": (0.1, 0.1)}, ("none", "icd"))
    shown = page(tmp_path, whole_run() | {"evaluation": section})
    command = "safety-neurons evaluate RUN_DIR --evaluate.defenses none safetuning"
    assert f"This evaluation is without “safetuning”: {command}" in shown.text
    assert "after tuning is not measured yet" in shown.text


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        ({"neurons": "none"}, "neurons"),
        ({"rows": [{"stage": "calibrate"}]}, "rows.0.value"),
        ({"training": {"trainable_parameters": "many"}}, "training.trainable_parameters"),
        ({"vocabulary": {"random_sets": 5, "scores": [1]}}, "vocabulary.scores.0"),
    ],
)
def test_damaged_results_are_refused(damage: dict[str, Any], where: str) -> None:
    with pytest.raises(SafetyNeuronsError, match=re.escape(f"damaged at {where}")):
        RunResults.of(partial_run() | damage)


def test_results_are_written_as_they_were_read() -> None:
    results = json.loads(json.dumps(full()))
    written = json.loads(json.dumps(RunResults.of(results).to_json()))
    for found in (results["neurons"], results["control"]):
        for entry in found["indices"]:
            entry.setdefault("hook_point", entry.pop("site", None))
    assert lost(results, written) == []
    assert RunResults.of(written) == RunResults.of(results)


def lost(value: Any, other: Any, where: str = "") -> list[str]:
    """What `other` does not hold of `value`; it may hold more."""
    if isinstance(value, dict) and isinstance(other, dict):
        return [one for key, content in value.items() for one in lost(content, other.get(key), f"{where}.{key}")]
    if isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        return [one for pair in zip(value, other, strict=True) for one in lost(*pair, where)]
    return [] if value == other else [where]


def test_results_of_0_1_are_refused_in_one_sentence() -> None:
    with pytest.raises(SafetyNeuronsError, match=r"^These results were written by version 0\.1, [^.]*\.$"):
        RunResults.of({"schema": 2, "run": {}, "rows": []})


@pytest.mark.parametrize("broken", [{}, [], {"schema": 4, "run": {}, "rows": []}, {"schema": 3, "rows": []}])
def test_other_results_are_refused(tmp_path: Path, broken: Any) -> None:
    with pytest.raises(SafetyNeuronsError, match="Run all stages again"):
        page(tmp_path, broken)
    assert not (tmp_path / "report.html").exists()
