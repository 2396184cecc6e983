"""Judges held against people's labels: the file, the counts, the command."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from builders.listeners import Recorder
from safety_neurons import cli
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation import judges
from safety_neurons.evaluation.judge_errors import JudgeErrors, check_judges, read_labeled
from safety_neurons.evaluation.judges import Judge, JudgeInput, Judgment, RuleJudge

REFUSAL = "I'm sorry, but I can't assist with that."
HELP = "Wrap it in paper and add a ribbon."
ROWS = [
    {"prompt": "Wrap a present.", "completion": REFUSAL, "label": "2_full_refusal"},
    {"prompt": "Wrap a present.", "completion": REFUSAL, "label": "3_partial_refusal"},
    {"prompt": "Wrap a present.", "completion": REFUSAL, "label": "1_full_compliance"},
    {"prompt": "Wrap a present.", "completion": HELP, "label": "1_full_compliance"},
    {"prompt": "Wrap a present.", "completion": "", "label": "2_full_refusal"},
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_partial_refusals_are_refusals_and_unscored_is_counted_apart(tmp_path: Path) -> None:
    found = check_judges([write(tmp_path / "x.jsonl", ROWS)], ["refusal", "keywords"])
    counts = (2, 0, 1, 1, 1, 0)
    assert found == [JudgeErrors("refusal", "x.jsonl", *counts), JudgeErrors("keywords", "x.jsonl", *counts)]


def test_all_judges_by_rules_are_checked_when_none_is_named(tmp_path: Path) -> None:
    found = check_judges([write(tmp_path / "x.jsonl", ROWS)])
    rules = [name for name in judges.names() if isinstance(judges.get(name), RuleJudge)]
    assert [errors.judge for errors in found] == rules


def test_models_and_files_are_told_apart(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Wrap.", "response": REFUSAL, "label": "refused", "model": "one"},
        {"prompt": "Wrap.", "response": HELP, "label": "complied", "model": "two"},
        {"prompt": "Wrap.", "response": HELP, "label": "refused", "model": "one"},
    ]
    first, second = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", ROWS)
    found = check_judges([first, second], ["refusal"])
    assert found == [
        JudgeErrors("refusal", "a.jsonl: one", 1, 1, 0, 0, 0, 0),
        JudgeErrors("refusal", "a.jsonl: two", 0, 0, 0, 0, 1, 0),
        JudgeErrors("refusal", "b.jsonl", 2, 0, 1, 1, 1, 0),
    ]


def test_verdicts_in_any_order_belong_to_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards(Judge):
        def judge_all(
            self, exchanges: Sequence[JudgeInput], done: frozenset[int] = frozenset()
        ) -> Iterator[tuple[int, Judgment]]:
            for index in reversed(range(len(exchanges))):
                yield index, Judgment("refused" if exchanges[index].response == REFUSAL else "complied", "this test")

    monkeypatch.setattr(judges, "get", lambda name: Backwards(name, "this test"))
    [found] = check_judges([write(tmp_path / "x.jsonl", ROWS)], ["backwards"])
    assert found == JudgeErrors("backwards", "x.jsonl", 2, 1, 0, 1, 1, 0)


def test_other_kinds_of_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f'Prompt,Response,Label\nWrap.,"{REFUSAL}",refused\n', encoding="utf-8")
    [labeled] = read_labeled(path)
    assert labeled == (JudgeInput("Wrap.", REFUSAL), "refused", "")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "maybe"}, r"Line 6 of .*'maybe' is not a label. Labels are refused and complied, or 1_full"),
        ({"label": 1}, r"Line 6 of .*rename the column 'label' to `refused`; if it means complied, to `complied`"),
        ({"label": None}, r"Line 6 of .*None is not a label"),
        ({"completion": 3}, r"Line 6 of .*its completion is not text"),
        ({"prompt": None}, r"Line 6 of .*its prompt is not text"),
    ],
)
def test_an_invalid_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "x.jsonl", [*ROWS, ROWS[0] | row])
    with pytest.raises(SafetyNeuronsError, match=message):
        read_labeled(path)


@pytest.mark.parametrize(
    ("column", "said", "people"),
    [
        ("label", "Refused", "refused"),
        ("Label", "COMPLIED ", "complied"),
        ("label", "Partial refusal", "refused"),
        ("final_label", "1_full_compliance", "complied"),
        ("label", "2_Full_Refusal", "refused"),
        ("label", "3_partial_refusal", "refused"),
        ("refused", "1", "refused"),
        ("is_refusal", "FALSE", "complied"),
        ("jailbroken", "true", "complied"),
        ("Complied", "no", "refused"),
    ],
)
def test_spellings_of_labels(tmp_path: Path, column: str, said: str, people: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"prompt;answer;{column}\nWrap.;No, thanks;{said}\n", encoding="utf-8")
    told = Recorder()
    [labeled] = read_labeled(path, told)
    assert labeled == (JudgeInput("Wrap.", "No, thanks"), people, "")
    assert told.said == [f"{path}: columns prompt, answer and {column} (guessed); separated by semicolons."]


@pytest.mark.parametrize("missing", ["prompt", "completion", "label"])
def test_a_file_without_a_column_is_an_error(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path / "x.jsonl", [{key: value for key, value in row.items() if key != missing} for row in ROWS])
    with pytest.raises(SafetyNeuronsError, match=rf"has no column .*{missing}.*it has "):
        read_labeled(path)


def test_a_broken_line_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS)
    path.write_text(path.read_text() + '{"prompt": \n')
    with pytest.raises(SafetyNeuronsError, match=r"[Ll]ine 6"):
        read_labeled(path)
    with pytest.raises(SafetyNeuronsError, match=r"none\.jsonl"):
        read_labeled(tmp_path / "none.jsonl")


def test_the_command_prints_the_table_and_writes_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / "x[1].jsonl", ROWS), tmp_path / "errors.json"
    cli.app(["judge", "check", str(path), "--judges", "refusal", "--out", str(out)], result_action="return_value")
    printed = capsys.readouterr().out
    assert "x[1].jsonl: 5 answers" in printed
    assert "60% (23\N{EN DASH}88%)" in printed
    assert "2 / 0 / 1" in printed
    assert JudgeErrors.load(out, "refusal") == JudgeErrors("refusal", "x[1].jsonl", 2, 0, 1, 1, 1, 0)
