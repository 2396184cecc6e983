"""Math problems: read from a file, and the number that an answer ends with."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.statistics import share
from safety_neurons.evaluation.utility.gsm8k import Problem, Solutions, final_number, read_problems


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 2 = <<2+2=4>>4\n#### 4", "4"),
        ("#### 1,234,567 dollars in 3 years", "1234567"),
        ("#### $-12.50", "-12.5"),
        ("#### 3\nNo, wait.\n#### 5.0.", "5"),
        ("So it is **18** in all.", "18"),
        ("The answer is 7 ####", "7"),
        ("#### Step 1\nBuy 3.\n#### Step 2\nPay 4, so 12 in all.", "12"),
        ("#### 12\n#### Note 2", "12"),
        ("It is 5.\n####\n3 steps, 9 in all.", "9"),
        ("#### **1{,}234** apples, 3 each", "1234"),
        (r"#### \$1,250.50 or 2", "1250.5"),
        ("First 3, then 4, 5", "5"),
        ("I cannot say.", None),
        ("", None),
    ],
)
def test_the_final_number_of_an_answer(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_problems_are_those_of_the_test_split(tmp_path: Path) -> None:
    rows = [
        {"prompt": "One and one?", "answer": "#### 2", "split": "train"},
        {"prompt": "Two and two?", "answer": "It is\n#### 4", "split": "test"},
    ]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_problems(path) == [Problem("Two and two?", Decimal(4))]
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps({"question": row["prompt"], "answer": row["answer"]}) + "\n" for row in rows))
    assert [problem.solution for problem in read_problems(plain)] == [2, 4]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "One and one?"}, "has no column answer"),
        ({"answer": "#### 2"}, "has no column question"),
        ({"question": "One and one?", "answer": "two"}, r"Line 1 of .* is not a problem"),
        ({"question": " ", "answer": "#### 2"}, r"Line 1 of .* is not a problem"),
    ],
)
def test_a_file_of_something_else_is_an_error(tmp_path: Path, row: dict[str, str], message: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(SafetyNeuronsError, match=message):
        read_problems(path)


def test_the_difference_is_over_the_problems_that_both_ran() -> None:
    base = Solutions((True, True, False, True, None), share([False]))
    tuned = Solutions((True, False, False, None, True), share([False]))
    assert tuned.difference(base, seed=0).value == pytest.approx(1 / 3 - 2 / 3)
    assert base.exact_match.n == 4
