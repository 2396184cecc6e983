"""Tuning repeated with several seeds, on the page, in the headline and in the comparison: there, absent, hostile."""

from pathlib import Path
from typing import Any

import pytest

from builders.report import DASH, MINUS, Rows, page, poisoned, seeds, whole_run
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.report import RunResults, summary, tables_of
from safety_neurons.report.comparison import comparison_tables

TITLE = "Tuned again with other seeds"


def repeated_run(**changes: Any) -> dict[str, Any]:
    return whole_run() | {"seeds": seeds() | changes}


def test_the_page_shows_mean_spread_and_differences(tmp_path: Path) -> None:
    shown = page(tmp_path, repeated_run())
    assert TITLE in shown.text
    rows = Rows(shown.source).found
    assert f"before |  | 48% (44{DASH}52%) | 5% (1{DASH}9%)" in rows
    assert f"found neurons, 2% | 3 | 7% (3{DASH}11%) SD 3.6 | 3% (0{DASH}7%) SD 1.7" in rows
    assert (
        f"attacks, mean | 48% (44{DASH}52%) | 4% / 6% / 11% | 7% (3{DASH}11%) | 3.6 | 11% (seed 9) | "
        f"{MINUS}41 ({MINUS}45 to {MINUS}38) | {MINUS}13 ({MINUS}17 to {MINUS}10)" in rows
    )
    assert "random-search is left out: it needs a model in this process." in shown.text
    assert "says nothing of the spread" not in shown.text


def test_without_it_the_page_is_as_before(tmp_path: Path) -> None:
    assert TITLE not in page(tmp_path, whole_run()).text


def test_the_headline_has_the_mean_and_the_range() -> None:
    results = RunResults.of(repeated_run())
    (note,) = [one for one in summary.verdict(results).notes if "trainings" in one]
    assert note == (
        f"Over 3 trainings on ours:benign, mean (95% interval) and range: attacks, mean 7% (3{DASH}11%), 4% to 11%; "
        f"benign refused 3% (0{DASH}7%), 2% to 5%."
    )


@pytest.mark.parametrize(
    "results",
    [whole_run(), whole_run() | {"seeds": seeds(1)}, repeated_run(groups=[seeds()["groups"][0] | {"percent": 0.1}])],
    ids=["absent", "one training", "another size"],
)
def test_the_headline_has_none_where_the_run_was_not_repeated(results: dict[str, Any]) -> None:
    found = RunResults.of(results)
    assert summary.over_seeds(found) == ""
    assert not [one for one in comparison_tables({"a": found}) if "several seeds" in one.title]


def test_one_training_has_no_spread_and_says_so() -> None:
    tables, notes = tables_of(RunResults.of(whole_run() | {"seeds": seeds(1)}), "seeds")
    assert tables[0].rows[1].cells[2].detail.endswith(f"SD {DASH}")
    assert any("One training says nothing of the spread between trainings" in note for note in notes)


@pytest.mark.parametrize(
    ("corpus", "said"),
    [(None, "Each training has a corpus and batches of its own seed"), ("mine.jsonl", "the pairs of mine.jsonl")],
)
def test_the_corpora_are_those_that_were_trained_on(corpus: str | None, said: str) -> None:
    _, notes = tables_of(RunResults.of(repeated_run(corpus=corpus)), "seeds")
    assert any(said in note for note in notes)
    assert any("a corpus and batches" in note for note in notes) is (corpus is None)


def test_the_comparison_has_a_column_for_each_run() -> None:
    runs = {"a": RunResults.of(repeated_run()), "b": RunResults.of(whole_run())}
    (table,) = [one for one in comparison_tables(runs) if "several seeds" in one.title]
    lines = {one.cells[0].text: [cell.text for cell in one.cells[1:]] for one in table.rows}
    assert lines["attacks, mean"][0] == f"48% (44{DASH}52%) → 7% (3{DASH}11%), SD 3.6, 3 trainings"
    assert lines["attacks, mean"][1] == DASH


def test_rates_that_are_missing_are_dashes(tmp_path: Path) -> None:
    found = seeds()
    for group in found["groups"]:
        for measure in group["measures"]:
            nothing = {"value": None, "low": None, "high": None}
            measure |= {"mean": measure["mean"] | nothing, "spread": None, "against_before": nothing}
            measure["trainings"] = [one | nothing for one in measure["trainings"]]
    shown = page(tmp_path, whole_run() | {"seeds": found})
    assert TITLE in shown.text
    assert any(row.startswith("attacks, mean |") and row.count(DASH) > 3 for row in Rows(shown.source).found)


def test_a_measure_without_a_rate_for_each_training_is_damaged() -> None:
    found = seeds()
    found["groups"][0]["measures"][0]["trainings"].pop()
    with pytest.raises(SafetyNeuronsError, match="one rate for each training"):
        RunResults.of(whole_run() | {"seeds": found})


def test_nothing_in_it_is_an_empty_table(tmp_path: Path) -> None:
    assert TITLE in page(tmp_path, repeated_run(groups=[])).text


def test_hostile_names_are_shown_and_not_run(tmp_path: Path) -> None:
    found = seeds()
    for group in found["groups"]:
        group |= {"subject": "<img src=x>", "trainings": group["trainings"] * 20}
        group["measures"] = [one | {"trainings": one["trainings"] * 20} for one in group["measures"]] * 20
    shown = page(tmp_path, whole_run() | {"seeds": poisoned(found)})
    assert [tag for tag, _ in shown.tags if tag == "img"] == []
    assert "..." in shown.text
