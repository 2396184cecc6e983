"""Attack by defense and the judges on the page: in numbers, behind the cells, absent, and hostile."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from builders.report import (
    DASH,
    MINUS,
    REASON,
    SECTIONS,
    VERDICTS,
    Rows,
    cell,
    extended_grid,
    grid,
    page,
    partial_run,
    poisoned,
    read_evaluation,
    whole_run,
)
from safety_neurons.report import RunResults, evaluation_tables, run_figures, text


def graded(section: dict[str, Any]) -> dict[str, Any]:
    results = whole_run()
    return results | {"evaluation": section}


def test_grid_in_numbers(tmp_path: Path) -> None:
    shown = page(tmp_path, graded(grid()))
    assert shown.ids() == SECTIONS
    rows = Rows(shown.source).found
    assert f"none | 75% (65{DASH}82%) | {DASH} | 25% (15{DASH}32%)" in rows
    assert f"none | 50% (40{DASH}57%) | 100% (90{DASH}100%)" in rows
    change = f"25% (65{DASH}82%) | {MINUS}50 ({MINUS}75 to {MINUS}25)"
    assert f"icd | {change} | 50%* (40{DASH}57%)" in rows, "the first judge's p-values are below 5%"
    assert f"icd | 0%* (0{DASH}7%) | 67%* (57{DASH}74%)" in rows
    assert f"icd | {change} | 33% (23{DASH}40%), 1 unscored" in rows, "the second judge's are not"
    assert f"icd | 33% (23{DASH}40%), 1 unscored | 33% (23{DASH}40%)" in rows
    assert f"guard | 0%* (0{DASH}7%) | not run" in rows
    assert sum(attributes.get("title") == REASON for _, attributes in shown.tags) == 2
    assert f"guard: not run everywhere: {REASON}" in shown.text
    assert "time ratio" not in shown.text
    assert "corrected" not in shown.text
    assert "beside people" not in shown.text


def test_costs_corrections_and_people_are_shown_where_they_are(tmp_path: Path) -> None:
    shown = page(tmp_path, graded(extended_grid()))
    rows = Rows(shown.source).found
    assert any(row.startswith(f"none | 75% (65{DASH}82%) | 62% (52{DASH}70%) | {DASH} | ") for row in rows)
    assert any(row.startswith("icd | ") and row.endswith(f" | 1.38 (1.25{DASH}1.50)") for row in rows)
    assert "The same verdict on 87% of 100 answers" in shown.text
    assert "complied | 30 (75%) | 10 (25%) | 0 (0%)" in rows
    assert "refused | 0 (0%) | 57 (95%) | 3 (5%)" in rows


def test_behind_a_cell_are_verdicts_and_no_answers(tmp_path: Path) -> None:
    shown = page(tmp_path, graded(grid()))
    behind = shown.json["data-cells"]
    assert set(behind) == {"ids", "words", "cells"}
    buttons = [attributes for tag, attributes in shown.tags if tag == "button"]
    assert [button["data-cell"] for button in buttons] != []
    assert len(buttons) == len(behind["cells"]) == 16, "8 cells were run, each with 2 judges"
    panels = {attributes.get("id") for tag, attributes in shown.tags if tag == "div"}
    assert all(button["aria-controls"] in panels and button["aria-expanded"] == "false" for button in buttons)
    one = next(entry for entry in behind["cells"] if entry["title"] == "prefill, against icd, tiny, judge rules")
    assert behind["ids"][one["ids"]] == [f"harmful-{number:03}" for number in range(4)]
    assert [behind["words"][verdict] for verdict in one["verdicts"]] == ["complied", "complied", "refused", "not asked"]
    assert one["lines"][0] == "4 requests: 2 complied, 1 refused, 1 not asked."
    assert one["lines"][2].startswith(
        f"Against the undefended model on the same 4 requests: {MINUS}50 ({MINUS}90 to +10)"
    )
    assert len(behind["ids"]) == 2, "ids that cells share are kept once"


def test_agreement_is_cohens_kappa(tmp_path: Path) -> None:
    found = {one.requests: one for one in evaluation_tables.agreements(read_evaluation(grid()))}
    for requests, attacks in (("harmful", ("direct", "prefill")), ("safe", ("benign",))):
        both = [
            pair
            for defense, attack in itertools.product(VERDICTS, attacks)
            for pair in zip(*(VERDICTS[defense][attack] or ("", "")), strict=True)
            if not set(pair) & {"u", "-"}
        ]
        one = found[requests]
        assert one.n == len(both)
        assert one.same == pytest.approx(sum(a == b for a, b in both) / len(both))
        assert one.kappa == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)))
    assert evaluation_tables.kappa([("refused", "refused")] * 3) is None
    judges = evaluation_tables.judge_tables(read_evaluation(grid()))[0]
    assert [[cell.text for cell in row.cells[:3]] for row in judges.rows] == [
        ["rules", "31", "0"],
        ["asked", "31", "3 (9.7%)"],
    ]
    alone = grid()
    del alone["judges"]["asked"]
    shown = page(tmp_path, graded(alone))
    assert "Agreement of two judges" not in shown.text
    assert "rules of ours" in shown.text


def test_grid_stands_alone_and_may_be_missing(tmp_path: Path) -> None:
    shown = page(tmp_path, partial_run() | {"evaluation": grid()})
    assert "data-cells" in shown.json
    missing = page(tmp_path, {key: value for key, value in whole_run().items() if key != "evaluation"})
    assert "data-cells" not in missing.json
    assert "safety-neurons evaluate RUN_DIR asks every attack" in missing.text
    assert len(missing.scripts) == 2


def test_hostile_names_are_shown_and_not_run(tmp_path: Path) -> None:
    section = poisoned(extended_grid())
    whole, shown = (page(tmp_path, graded(one)) for one in (extended_grid(), section))
    assert [tag for tag, _ in shown.tags if tag == "img"] == []
    count = [len([tag for tag, _ in one.tags if tag == "script"]) for one in (whole, shown)]
    assert count[0] == count[1]
    assert shown.text.count("<script>alert(1)</script>") > 10
    own = shown.source[shown.source.index("<body>") :].replace(shown.scripts[0], "")
    assert not any(hidden in own for hidden in "\u202e\u2028\x07\ufffd")
    assert "W" * 3000 not in shown.source
    assert "<script>alert" in shown.json["data-cells"]["cells"][0]["title"], "as JSON text, for textContent"
    for figure in run_figures.grids(RunResults.of(graded(section))):
        drawn = [figure.alternative, *figure.specification["layout"]["yaxis"]["ticktext"]]
        assert not any("<" in one for one in drawn)


def test_a_huge_grid_is_cut(tmp_path: Path) -> None:
    section = grid()
    wide = cell("none", "direct")
    del wide["judges"]["asked"]
    many = {"prompt_ids": [f"harmful-{number:05}" for number in range(150)]}
    wide["judges"]["rules"]["verdicts"] = ["complied", "refused"] * 75
    section["cells"] = [
        wide | many | {"attack": f"attack {attack}", "defense": f"defense {defense}"}
        for attack, defense in itertools.product(range(62), range(62))
    ]
    shown = page(tmp_path, graded(section))
    assert len(shown.source.encode()) < 8_000_000
    cells = shown.json["data-cells"]["cells"]
    assert "verdicts" in cells[0]
    assert "verdicts" not in cells[-1]


def test_heat_map_for_files() -> None:
    first, second = run_figures.grids(RunResults.of(graded(grid())))
    heat = first.specification["data"][0]
    assert heat["z"] == [[0.5, 1.0], [0.0, pytest.approx(2 / 3)], [0.0, None]]
    assert heat["text"][2][1] == "not run"
    assert heat["text"][1][0] == f"0%*<br>(0{DASH}7%)"
    assert (first.name, second.name) == ("grid-1", "grid-2")


def test_points_have_a_proper_sign() -> None:
    assert [text.signed(value) for value in (None, -0.5, 0.125)] == [DASH, f"{MINUS}50", "+12"]
