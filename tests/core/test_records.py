"""Typed JSON files and caches of typed lines, and what becomes of damaged ones."""

import json
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.records import JsonlCache, Line, Record, append_line, read_lines, read_record


class Text(Line):
    text: str = ""
    numbers: tuple[float, ...] = ()


LINES = [
    Text(key="plain"),
    Text(key="two", text="two\nlines\r\n\u2028and \u0085 others"),
    Text(key="lone", text="lone \ud800", numbers=(1.5, 2)),
    Text(key="number", numbers=(0.1,)),
]
# What each line of a file can become, and the start of what is said of it.
DAMAGED = {
    "": "invalid JSON",
    "nonsense": "invalid JSON",
    "null": "input should be an object",
    "[]": "input should be an object",
    "{}": "key: field required",
    '{"key": 1}': "key: input should be a valid string",
    '{"key": "a", "text": null}': "text: input should be a valid string",
    '{"key": "a", "numbers": [NaN]}': "NaN is not a number",
    '{"key": "a", "numbers": [1, "2"]}': "numbers.1: input should be a valid number",
    '{"key": "a", "numbers": 3}': "numbers: input should be a valid array",
    '{"key": "a", "other": 3}': "other: extra inputs are not permitted",
    "[" * 100_000: "invalid JSON",
    '{"key": "a"': "invalid JSON",
    "\x00" * 50: "invalid JSON",
}


def test_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path, Text) == []
    for count, line in enumerate(LINES, start=1):
        append_line(path, line)
        assert read_lines(path, Text) == LINES[:count]
    assert path.read_bytes().count(b"\n") == len(LINES)


def test_a_file_cut_off_anywhere_gives_its_whole_lines_and_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for line in LINES:
        append_line(path, line)
    content = path.read_bytes()
    for kept in range(len(content) + 1):
        path.write_bytes(content[:kept])
        whole = content[:kept].count(b"\n")
        assert read_lines(path, Text) == LINES[:whole]
        assert path.read_bytes() == b"".join(content.splitlines(keepends=True)[:whole])
        append_line(path, Text(key="next"))
        assert read_lines(path, Text) == [*LINES[:whole], Text(key="next")]


def test_reading_whole_lines_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, LINES[0])
    before = path.stat().st_mtime_ns
    read_lines(path, Text)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("damaged", [text for text in DAMAGED if text])
def test_a_damaged_line_is_named_set_aside_and_missed_once(damaged: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, LINES[0])
    with path.open("ab") as file:
        file.write(damaged.encode() + b"\n")
    append_line(path, LINES[1])
    with pytest.warns(UserWarning, match="damaged") as caught:
        assert read_lines(path, Text) == LINES[:2]
    message = str(caught[0].message)
    assert message.startswith(f"1 of the 3 lines of {path} are damaged (line 2: {DAMAGED[damaged]}")
    assert len(message) < 600
    assert (tmp_path / "lines.jsonl.damaged").read_text() == damaged + "\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_lines(path, Text) == LINES[:2]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_file_is_an_error_that_names_it(damaged: str, tmp_path: Path) -> None:
    path = tmp_path / "text.json"
    path.write_text(damaged)
    with pytest.raises(SafetyNeuronsError) as caught:
        read_record(path, Text, "Run it again.")
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged: {DAMAGED[damaged]}")
    assert message.endswith(". Run it again.")
    assert len(message) < 600


def test_a_line_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    class Loose(Record):
        value: Any

    with pytest.raises(ValueError, match="JSON compliant"):
        append_line(tmp_path / "lines", Loose(value=float("inf")))
    assert read_lines(tmp_path / "lines", Text) == []


def test_cached_lines_are_found_again_by_key(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    cache = JsonlCache.read(path, Text)
    assert cache.add(Text(key="one", text="first")) == Text(key="one", text="first")
    cache.add(Text(key="two", text="second"))
    with path.open("ab") as file:
        file.write(b'{"key": "three"')
    again = JsonlCache.read(path, Text)
    assert again.entries == cache.entries
    assert list(again.entries) == ["one", "two"]


def test_a_cache_without_a_path_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = JsonlCache.read(None, Text)
    cache.add(Text(key="one"))
    assert cache.entries == {"one": Text(key="one")}
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_only_the_owner_reads_answers(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    before = os.umask(umask)
    try:
        append_line(path, LINES[0])
        with path.open("ab") as file:
            file.write(b"half")
        read_lines(path, Text)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_goes_through_no_link_and_into_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, message in (("link.jsonl", "symbolic link"), ("pipe.jsonl", "cannot be written|not a regular file")):
        with pytest.raises(SafetyNeuronsError, match=message):
            append_line(tmp_path / name, LINES[0])
    with pytest.raises(SafetyNeuronsError, match="not a regular file"):
        read_lines(tmp_path / "pipe.jsonl", Text)
    assert (tmp_path / "target").read_text() == "precious"


def test_the_end_of_a_linked_file_is_not_cut_off(tmp_path: Path) -> None:
    (tmp_path / "target").write_text(json.dumps({"key": "a"}) + "\nhalf")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "target")
    with pytest.raises(SafetyNeuronsError, match="symbolic link"):
        read_lines(tmp_path / "link.jsonl", Text)
    assert (tmp_path / "target").read_text().endswith("half")
