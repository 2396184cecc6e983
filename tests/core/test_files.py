"""Files are complete or absent, whatever fails on the way; locks; the JSONL cache."""

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from safety_neurons.core import files
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import (
    JsonlCache,
    append_line,
    atomic_path,
    file_sha256,
    locked,
    read_json,
    read_lines,
    read_tensors,
    write_json,
    write_text,
)

FULL = OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), FULL, OSError(errno.EIO, "broken disk")])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_leaves_the_old_file_and_no_other(failure: BaseException, old: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    if old is not None:
        path.write_text(old)

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises((type(failure), SafetyNeuronsError)):
        interrupted()
    assert names(tmp_path) == ([] if old is None else ["file.json"])
    assert old is None or path.read_text() == old


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
        assert temporary.suffix == ".json"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.json"]


def test_folders_are_created(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "file", "text")
    assert (tmp_path / "a" / "b" / "file").read_text() == "text"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "text")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (FULL, "No space left for .*file"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "No space left for .*file"),
        (SafetensorError("Error while serializing: No space left on device (os error 28)"), "No space left"),
        (OSError(errno.EROFS, "Read-only file system"), r"file cannot be written \(Read-only file system\)"),
        (OSError(errno.EACCES, "Permission denied"), r"file cannot be written \(Permission denied\)"),
    ],
)
def test_disk_failures_are_errors_that_name_the_file(failure: Exception, message: str, tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=message), atomic_path(tmp_path / "file"):
        raise failure


def test_other_failures_pass_through(tmp_path: Path) -> None:
    for failure in (OSError(errno.EIO, "broken disk"), SafetensorError("a bad tensor"), ValueError("a bug")):
        with pytest.raises(type(failure)) as caught, atomic_path(tmp_path / "file"):
            raise failure
        assert caught.value is failure


def test_space_that_runs_out_while_syncing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise FULL

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SafetyNeuronsError, match="No space left"):
        write_json(tmp_path / "file.json", {"a": 1})
    assert names(tmp_path) == []


@pytest.mark.parametrize("below", ["file.json", "sub/file.json", "sub/folder/file.json"])
def test_a_file_where_a_folder_should_be_is_an_error(below: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("I am a file")
    with pytest.raises(SafetyNeuronsError, match="taken"):
        write_json(tmp_path / "taken" / below, {})
    assert (tmp_path / "taken").read_text() == "I am a file"


def test_a_folder_where_a_file_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(SafetyNeuronsError, match="taken cannot be written"):
        write_json(tmp_path / "taken", {})
    assert names(tmp_path) == ["taken"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_line_on_a_full_disk_is_an_error() -> None:
    with pytest.raises(SafetyNeuronsError, match="No space left for /dev/full"):
        append_line(Path("/dev/full"), {"a": 1})


def test_text_is_utf8_and_lone_surrogates_do_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "ñ 中 🙂")
    assert path.read_bytes() == "ñ 中 🙂".encode()
    write_text(path, "before \ud800 after")
    assert path.read_bytes() == b"before ? after"


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True], "ñ": "中"}, [], "text", {"lone": "x\ud83dy"}])
def test_json_comes_back(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, value)
    assert read_json(path) == json.loads(json.dumps(value).replace("\\ud83d", "?"))
    assert path.read_bytes().endswith(b"\n")


def test_json_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        append_line(tmp_path / "lines", {"a": float("inf")})
    assert read_json(path) == {"a": 1}
    assert read_lines(tmp_path / "lines") == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"nonsense"])
def test_broken_json_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(SafetyNeuronsError, match=r"file\.json is not valid JSON"):
        read_json(tmp_path / "file.json")


def test_missing_json_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"file\.json does not exist"):
        read_json(tmp_path / "file.json")


LINES: list[dict[str, Any]] = [
    {"text": "plain"},
    {"text": "two\nlines\r\n\u2028and \u0085 others"},
    {"text": "lone \ud800"},
    {"n": 1},
]


def test_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    for count, line in enumerate(LINES, start=1):
        append_line(path, line)
        assert read_lines(path) == LINES[:count]
    assert path.read_bytes().count(b"\n") == len(LINES)


def test_a_file_cut_off_anywhere_gives_its_whole_lines_and_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for line in LINES:
        append_line(path, line)
    content = path.read_bytes()
    for kept in range(len(content) + 1):
        path.write_bytes(content[:kept])
        whole = content[:kept].count(b"\n")
        assert read_lines(path) == LINES[:whole]
        assert path.read_bytes() == b"".join(content.splitlines(keepends=True)[:whole])
        append_line(path, {"next": kept})
        assert read_lines(path) == [*LINES[:whole], {"next": kept}]


def test_reading_whole_lines_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    before = path.stat().st_mtime_ns
    read_lines(path)
    assert path.stat().st_mtime_ns == before


def test_a_locked_folder_is_refused_until_it_is_free(tmp_path: Path) -> None:
    def second() -> None:
        with locked(tmp_path, "Wait for it to end."):
            pass

    with locked(tmp_path, "unused"), pytest.raises(SafetyNeuronsError, match=r"Another process.*Wait for it to end\."):
        second()
    second()


def test_a_lock_is_released_after_an_error_and_turns_disk_errors(tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="No space left"), locked(tmp_path, "unused"):
        raise FULL
    with locked(tmp_path, "unused"):
        pass


def test_a_lock_in_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("I am a file")
    with pytest.raises(SafetyNeuronsError, match="taken cannot be written"), locked(tmp_path / "taken", "unused"):
        pass


def test_cached_lines_are_found_again_by_key(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    cache = JsonlCache.read(path)
    assert cache.add("one", {"text": "first"}) == {"key": "one", "text": "first"}
    cache.add("two", {"text": "second"})
    with path.open("ab") as file:
        file.write(b'{"key": "three"')
    again = JsonlCache.read(path)
    assert again.entries == cache.entries
    assert list(again.entries) == ["one", "two"]


def test_a_cache_without_a_path_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = JsonlCache.read(None)
    cache.add("one", {"n": 1})
    assert cache.entries == {"one": {"key": "one", "n": 1}}
    assert names(tmp_path) == []


def test_the_content_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content" * 100_000)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"content" * 100_000).hexdigest()


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist"), (b"nonsense", "is broken")])
def test_tensors_that_cannot_be_read_are_an_error(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(SafetyNeuronsError, match=message):
        read_tensors(tmp_path / "file")
