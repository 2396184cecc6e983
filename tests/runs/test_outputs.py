"""A folder that holds somebody else's files is no place for an evaluation."""

import json
from pathlib import Path

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.temporary import process_namespace
from safety_neurons.runs.outputs import check_output

ANSWER = {"key": "k", "model": "m", "change": "", "user": "u", "prefill": "", "text": "t", "cut_off": False}


def check(folder: Path) -> None:
    check_output(folder, "evaluation.json", 1, "evaluation")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.md", "mine"),
        ("evaluation.json", "{}"),
        ("evaluation.json", "mine"),
        ("responses.jsonl", '{"prompt": "mine"}\n'),
        ("responses.jsonl", "mine"),
        ("verdicts.jsonl", "[1]\n"),
        ("notes.txt", ""),
    ],
)
def test_files_of_somebody_else_are_not_overwritten(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SafetyNeuronsError, match=r"is not empty and holds no evaluation\. Choose another folder"):
        check(tmp_path)
    assert (tmp_path / name).read_text() == content


def test_an_evaluation_and_what_a_kill_left_of_one_are_written_again(tmp_path: Path) -> None:
    check(tmp_path / "new")
    (tmp_path / ".lock").touch()
    (tmp_path / f".evaluation.json.1.{process_namespace()}.01234567.partial.json").touch()
    (tmp_path / "verdicts.jsonl").write_text('{"key": "')
    (tmp_path / "responses.jsonl").write_text(json.dumps(ANSWER) + "\n")
    (tmp_path / "responses.jsonl.damaged").write_text("?")
    check(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"schema": 1}')
    (tmp_path / "evaluation.md").touch()
    check(tmp_path)
