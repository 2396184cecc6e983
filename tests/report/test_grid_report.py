"""Attack by defense and the judges on the page: in numbers, behind the cells, absent, and hostile."""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from safety_neurons.report import grid_figures, grid_tables, judge_tables

# The parsed page, its tables, and the results of a run are those of the other tests of the page.
_SPEC = importlib.util.spec_from_file_location("causal_report_page", Path(__file__).with_name("test_causal_report.py"))
assert _SPEC
assert _SPEC.loader
causal = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(causal)
base = causal.base

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
WORDS = {"c": "complied", "r": "refused", "u": "unscored", "-": None}
# Verdicts of both judges, request by request, for each defense on direct, prefill and the safe set.
VERDICTS: dict[str, dict[str, tuple[str, str] | None]] = {
    "none": {"direct": ("ccrr", "ccru"), "prefill": ("cccc", "cccr"), "benign": ("cccr", "cccr")},
    "icd": {"direct": ("rrrr", "crru"), "prefill": ("ccr-", "crr-"), "benign": ("rrcc", "rucc")},
    "guard": {"direct": ("rrrr", "rrrr"), "prefill": None, "benign": ("cccc", "cccc")},
}
REASON = "the server takes no opening of an answer"


def judged(letters: str, counted: str, against: dict[str, Any] | None) -> dict[str, Any]:
    verdicts = [WORDS[letter] for letter in letters]
    n = sum(verdict in ("complied", "refused") for verdict in verdicts)
    rate = causal.share(verdicts.count(counted) / n)
    return {"verdicts": verdicts, "n": n, "unscored": letters.count("u"), "against_none": against} | rate


def cell(defense: str, attack: str) -> dict[str, Any]:
    letters = VERDICTS[defense][attack]
    safe = attack == "benign"
    against = None if defense == "none" else {"value": -0.5, "low": -0.9, "high": 0.1, "n": 4}
    return {
        "model": "tiny",
        "defense": defense,
        "attack": "direct" if safe else attack,
        "prompts": "benign" if safe else "harmful",
        "reason": "" if letters else REASON,
        "prompt_ids": [f"{'benign' if safe else 'harmful'}-{number:03}" for number in range(4)],
        "blocked": 2 if defense == "guard" else 0,
        "cut_off": 0,
        "judges": {
            judge: judged(said, "refused" if safe else "complied", against and against | {"p": p})
            for judge, said, p in zip(("rules", "asked"), letters or (), (0.031, 0.5), strict=False)
        },
    }


def evaluation() -> dict[str, Any]:
    rate = causal.share(0.75) | {"n": 8, "unscored": 0}
    summarize = [
        {
            "model": "tiny",
            "defense": defense,
            "judge": judge,
            "attacks": ["direct", "prefill"],
            "not_run": {},
            "attack_success": rate if defense == "none" else rate | {"value": 0.25},
            "against_none": None if defense == "none" else {"value": -0.5, "low": -0.75, "high": -0.25},
            "over_refusal": {},
            "corrected": None,
        }
        for defense, judge in itertools.product(VERDICTS, ("rules", "asked"))
    ]
    return {
        "schema": 1,
        "command": "safety-neurons evaluate runs/tiny",
        "models": ["tiny"],
        "attacks": {"direct": {"source": "baseline"}, "prefill": {"source": "a paper"}},
        "defenses": {name: {"source": "-"} for name in VERDICTS},
        "judges": {"rules": {"source": "rules of ours"}, "asked": {"source": "another model"}},
        "prompts": {"name": "harmful", "harmful": 4, "safe": {"benign": 4}},
        "answer_tokens": 24,
        "seed": 0,
        "cells": [cell(defense, attack) for defense in VERDICTS for attack in ("direct", "prefill", "benign")],
        "summary": summarize,
        "judge_errors": {},
        "overhead": [],
        "utility": [],
        "tasks": [],
        "preferences": [],
    }


def extended() -> dict[str, Any]:
    """With what only some evaluations have: the cost in time, rates corrected for the judge, and people's verdicts."""
    section = evaluation()
    section["overhead"] = [{"model": "tiny", "defense": "icd", "ratio": 1.375, "low": 1.25, "high": 1.5}]
    section["summary"][0]["corrected"] = causal.share(0.625)
    counts = {"complied": {"complied": 30, "refused": 10}, "refused": {"refused": 57, "unscored": 3}}
    section["judge_errors"] = {"rules": {"counts": counts, "source": "labeled answers"}}
    return section


def graded(section: dict[str, Any]) -> dict[str, Any]:
    results: dict[str, Any] = base.whole_run()
    return results | {"evaluation": section}


def test_grid_in_numbers(tmp_path: Path) -> None:
    shown = base.page(tmp_path, graded(evaluation()))
    assert shown.ids() == base.SECTIONS
    rows = causal.Rows(shown.source).found
    marked = "* differs from the undefended model"
    mean = f"75%65{DASH}82% | {DASH}"
    assert f"none | {mean} | 25%15{DASH}32% | 50%40{DASH}57% | 100%90{DASH}100%" in rows
    change = f"25%65{DASH}82% | {MINUS}50{MINUS}75 to {MINUS}25"
    assert f"icd | {change} | 50%{marked}40{DASH}57% | 0%{marked}0{DASH}7% | 67%{marked}57{DASH}74%" in rows, (
        "the first judge's p-values are below 5%"
    )
    assert f"icd | {change} | 33%23{DASH}40%1 unscored | 33%23{DASH}40%1 unscored | 33%23{DASH}40%" in rows, (
        "the second judge's are not"
    )
    assert any(row.startswith("guard | ") and row.endswith(f"| not run: {REASON}") for row in rows)
    assert f"guard was not run everywhere: {REASON}" in shown.text
    assert "time ratio" not in shown.text
    assert "corrected" not in shown.text
    assert "beside people" not in shown.text


def test_costs_corrections_and_people_are_shown_where_they_are(tmp_path: Path) -> None:
    shown = base.page(tmp_path, graded(extended()))
    rows = causal.Rows(shown.source).found
    assert any(row.startswith(f"none | 75%65{DASH}82% | 62%52{DASH}70% | {DASH} | ") for row in rows)
    assert any(row.startswith("icd | ") and f" | 1.381.25{DASH}1.50 | " in row for row in rows)
    assert "the same verdict on 87% of 100 answers" in shown.text
    assert "complied | 30 75% | 10 25% | 0 0%" in rows
    assert "refused | 0 0% | 57 95% | 3 5%" in rows


def test_behind_a_cell_are_verdicts_and_no_answers(tmp_path: Path) -> None:
    shown = base.page(tmp_path, graded(evaluation()))
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
    results = graded(evaluation())
    found = {one.requests: one for one in judge_tables.agreements(results)}
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
    assert judge_tables.kappa([("refused", "refused")] * 3) is None
    assert [(one.judge, one.answers, one.unscored) for one in judge_tables.scored(results)] == [
        ("rules", 31, 0),
        ("asked", 31, 3),
    ]
    alone = evaluation()
    del alone["judges"]["asked"]
    shown = base.page(tmp_path, graded(alone))
    assert "Agreement of two judges" not in shown.text
    assert "rules of ours" in shown.text


def test_grid_stands_alone_and_may_be_missing(tmp_path: Path) -> None:
    shown = base.page(tmp_path, base.partial_run() | {"evaluation": evaluation()})
    assert "data-cells" in shown.json
    missing = base.page(tmp_path, base.whole_run())
    assert "data-cells" not in missing.json
    assert "safety-neurons evaluate RUN_DIR asks every attack" in missing.text
    assert len(missing.scripts) == 2


def test_hostile_names_are_shown_and_not_run(tmp_path: Path) -> None:
    section = hostile(extended())
    whole, shown = (base.page(tmp_path, graded(one)) for one in (extended(), section))
    assert [tag for tag, _ in shown.tags if tag == "img"] == []
    count = [len([tag for tag, _ in one.tags if tag == "script"]) for one in (whole, shown)]
    assert count[0] == count[1]
    assert shown.text.count("<script>alert(1)</script>") > 10
    own = shown.source[shown.source.index("<body>") :].replace(shown.scripts[0], "")
    assert not any(hidden in own for hidden in "\u202e\u2028\x07\ufffd")
    assert "W" * 3000 not in shown.source
    assert "<script>alert" in shown.json["data-cells"]["cells"][0]["title"], "as JSON text, for textContent"
    for figure in grid_figures.figures(graded(section)):
        drawn = [figure.alternative, *figure.specification["layout"]["yaxis"]["ticktext"]]
        assert not any("<" in one for one in drawn)


def hostile(value: Any, key: str = "") -> Any:
    """Every name replaced by an attack on the page, the same everywhere, so that cells are still found."""
    if isinstance(value, dict):
        named = key in ("attacks", "defenses", "judges", "safe", "judge_errors", "counts", "over_refusal")
        return {hostile(name) if named else name: hostile(content, name) for name, content in value.items()}
    if isinstance(value, list):
        return [hostile(content, key) for content in value]
    kept = value == "" or key in ("prompts", "verdicts")
    return value if kept or not isinstance(value, str) else value + base.PAYLOAD + "W" * 1_000_000


def test_a_huge_grid_is_cut(tmp_path: Path) -> None:
    section = evaluation()
    wide = cell("none", "direct")
    del wide["judges"]["asked"]
    many = {"prompt_ids": [f"harmful-{number:05}" for number in range(150)]}
    wide["judges"]["rules"]["verdicts"] = ["complied", "refused"] * 75
    section["cells"] = [
        wide | many | {"attack": f"attack {attack}", "defense": f"defense {defense}"}
        for attack, defense in itertools.product(range(62), range(62))
    ]
    shown = base.page(tmp_path, graded(section))
    assert len(shown.source.encode()) < 8_000_000
    cells = shown.json["data-cells"]["cells"]
    assert "verdicts" in cells[0]
    assert "verdicts" not in cells[-1]


def test_heat_map_for_files() -> None:
    first, second = grid_figures.figures(graded(evaluation()))
    heat = first.specification["data"][0]
    assert heat["z"] == [[0.5, 1.0], [0.0, pytest.approx(2 / 3)], [0.0, None]]
    assert heat["text"][2][1] == "not run"
    assert heat["text"][1][0] == f"0%*<br>0{DASH}7%"
    assert (first.name, second.name) == ("grid-1", "grid-2")


def test_points_have_a_proper_sign() -> None:
    assert [grid_tables.signed(value) for value in (None, -0.5, 0.125)] == [DASH, f"{MINUS}50", "+12"]
