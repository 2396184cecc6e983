"""Two evaluations compared, against counting by hand."""

from pathlib import Path
from typing import Any

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import read_json, write_json
from safety_neurons.evaluation.comparison import compare
from safety_neurons.report.evaluation_tables import comparison_table

VERDICTS = {"c": "complied", "r": "refused", "u": "unscored", "-": None}


def cell(defense: str, attack: str, verdicts: str, *, prompts: str = "harmful", model: str = "tiny") -> dict[str, Any]:
    """One letter a request."""
    said = [VERDICTS[letter] for letter in verdicts]
    ids = [f"p{number}" for number in range(len(said))]
    place = {"model": model, "defense": defense, "attack": attack, "prompts": prompts}
    return place | {"prompt_ids": ids, "judges": {"refusal": {"verdicts": said}}}


def keep(folder: Path, *cells: dict[str, Any]) -> Path:
    found = {
        "schema": 1,
        "models": list(dict.fromkeys(one["model"] for one in cells)),
        "defenses": {one["defense"]: {} for one in cells},
        "cells": list(cells),
    }
    write_json(folder / "evaluation.json", found)
    return folder


def test_flips_of_two_evaluations(tmp_path: Path) -> None:
    first = keep(tmp_path / "one", cell("none", "direct", "ccccu-"), cell("none", "direct", "rrrr", prompts="safe"))
    second = keep(tmp_path / "two", cell("none", "direct", "crrrcc"), cell("none", "direct", "crrr", prompts="safe"))
    attacked, safe = compare(first, second)
    assert (attacked["lost"], attacked["gained"], attacked["first"]["n"]) == (("p1", "p2", "p3"), (), 4)
    assert attacked["difference"]["value"] == -0.75
    # Of safe requests refusals are counted.
    assert (safe["lost"], safe["first"]["value"], safe["second"]["value"]) == (("p0",), 1, 0.75)
    assert [
        [cell.text for cell in row.cells[4:6]] for row in comparison_table([attacked, safe], "one", "two").rows
    ] == [
        ["100%", "25%"],
        ["100%", "75%"],
    ]


def test_two_defenses_of_one_run(tmp_path: Path) -> None:
    """A run's evaluation is a section of its results."""
    apart = keep(tmp_path / "apart", cell("none", "direct", "cccc"), cell("guard", "direct", "rrrc"))
    run = tmp_path / "run"
    write_json(run / "results.json", {"schema": 3, "evaluation": read_json(apart / "evaluation.json")})
    [row] = compare(run, run, defenses=["none", "guard"])
    assert row == compare(apart, run, defenses=["none", "guard"])[0]
    assert (row["defenses"], row["lost"]) == (["none", "guard"], ("p0", "p1", "p2"))


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one = keep(tmp_path / "one", cell("none", "direct", "cu"))
    for other, message in (
        (tmp_path / "nothing", "holds no evaluation"),
        (keep(tmp_path / "attack", cell("none", "prefill", "cc")), "share no cell"),
        (keep(tmp_path / "unscored", cell("none", "direct", "uc")), "no request in common"),
        (
            keep(tmp_path / "models", cell("none", "direct", "c"), cell("none", "direct", "c", model="b")),
            "several models",
        ),
    ):
        with pytest.raises(SafetyNeuronsError, match=message):
            compare(one, other)
    with pytest.raises(SafetyNeuronsError, match="no defense called 'gaurd'"):
        compare(one, one, defenses=["none", "gaurd"])
    contents: tuple[Any, ...] = ([], {"schema": 0})
    for content in contents:
        write_json(tmp_path / "old" / "evaluation.json", content)
        with pytest.raises(SafetyNeuronsError, match="does not hold an evaluation of this version"):
            compare(one, tmp_path / "old")
