"""Files are complete or absent, whatever fails on the way; only regular ones are read and written."""

import errno
import hashlib
import os
import stat
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from safety_neurons.core import files
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import (
    append_bytes,
    atomic_path,
    exists,
    file_sha256,
    open_regular,
    read_bytes,
    read_json,
    read_text,
    write_json,
    write_text,
)
from safety_neurons.core.records import Record, read_record
from safety_neurons.core.temporary import is_temporary

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
        (OSError(errno.EIO, "Input/output error"), r"file cannot be written \(Input/output error\)"),
        (OSError(errno.ENOENT, "No such file or directory"), r"file cannot be written \(No such file or directory\)"),
    ],
)
def test_disk_failures_are_errors_that_name_the_file(failure: Exception, message: str, tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=message), atomic_path(tmp_path / "file"):
        raise failure


def test_other_failures_pass_through(tmp_path: Path) -> None:
    for failure in (SafetensorError("a bad tensor"), ValueError("a bug")):
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
def test_nothing_is_appended_to_a_device() -> None:
    with pytest.raises(SafetyNeuronsError, match="/dev/full is not a regular file"):
        append_bytes(Path("/dev/full"), b"line")


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
    assert read_json(path) == value
    assert path.read_bytes().endswith(b"\n")


def test_json_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"nonsense"])
def test_broken_json_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(SafetyNeuronsError, match=r"file\.json is not (valid JSON|UTF-8 text)"):
        read_json(tmp_path / "file.json")


def test_missing_json_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"file\.json does not exist"):
        read_json(tmp_path / "file.json")


def test_the_content_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content" * 100_000)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"content" * 100_000).hexdigest()


def test_a_private_file_is_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_text(tmp_path / "file", "text", private=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(SafetyNeuronsError, match="link is a symbolic link"):
        write_text(tmp_path / "link", "text")
    with pytest.raises(SafetyNeuronsError, match="link is a symbolic link"):
        append_bytes(tmp_path / "link", b"text")
    assert (tmp_path / "target").read_text() == "precious"
    assert names(tmp_path) == ["link", "target"]


def test_a_linked_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("\ufefftext", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert read_text(tmp_path / "link") == "text"


def irregular(tmp_path: Path) -> dict[Path, str]:
    """Paths that are not files to read, and what is said of them."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    return {
        tmp_path / "missing": "does not exist",
        tmp_path / "dangling": "does not exist",
        tmp_path / "bytes" / "file": "cannot be read",
        tmp_path / "folder": "is a folder where a file should be",
        tmp_path / "pipe": "is not a regular file",
        Path("/dev/zero"): "is not a regular file",
        tmp_path / "loop": "cannot be read",
        tmp_path / "sparse": "has 1,099,511,627,776 bytes",
        tmp_path / ("n" * 300): "cannot be read",
        tmp_path / "bytes": "is not UTF-8 text",
    }


def test_what_is_not_a_regular_file_of_sane_size_is_an_error_with_advice(tmp_path: Path) -> None:
    for path, message in irregular(tmp_path).items():
        with pytest.raises(SafetyNeuronsError) as caught:
            read_text(path, "Do this.")
        assert str(caught.value).startswith(f"{path} {message}")
        assert str(caught.value).endswith(". Do this.")


def test_json_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.touch()
    os.truncate(file, 64 * 1024 * 1024 + 1)
    for read in (read_json, lambda path: read_record(path, Record, "Move it away.")):
        with pytest.raises(SafetyNeuronsError, match="at most 67,108,864 are read"):
            read(file)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    with open_regular(tmp_path / "file", limit=4) as file:
        assert file.read() == b"1234"
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(SafetyNeuronsError, match="at most 4 are read"), open_regular(tmp_path / "file", limit=4):
        pass


@pytest.mark.parametrize("content", [b"", b"text"], ids=["nothing", "little"])
def test_a_file_of_holes_is_not_read(tmp_path: Path, content: bytes) -> None:
    """The hash of a terabyte of zeros would take hours."""
    (tmp_path / "file").write_bytes(content)
    os.truncate(tmp_path / "file", 1 << 40)
    with pytest.raises(SafetyNeuronsError, match="it is a file of holes"):
        file_sha256(tmp_path / "file")


def test_a_large_file_without_holes_is_read(tmp_path: Path) -> None:
    content = b"\1" * ((1 << 26) + 1)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    name = "n" * 240 + ".json"
    write_json(tmp_path / name, {})
    assert names(tmp_path) == [name]
    with pytest.raises(SafetyNeuronsError, match="cannot be written"):
        write_json(tmp_path / ("n" * 300), {})


def test_reading_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    tracemalloc.start()
    assert read_bytes(tmp_path / "file", limit=8 << 30) == b"1234"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_json_shows_scripts_and_no_hidden_characters(tmp_path: Path) -> None:
    text = "\x1b[2J\x9b\u202eñ 中 \u0627\u200c\u0628\ud800\U000e0041\u2028"
    write_json(tmp_path / "file.json", {text: [text]})
    written = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert "ñ 中 \u0627" in written
    assert not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl") for letter in written if letter != "\n")
    assert read_json(tmp_path / "file.json") == {text: [text]}


def test_what_is_appended_to_becomes_private(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one\n")
    (tmp_path / "file").chmod(0o644)
    append_bytes(tmp_path / "file", b"two\n")
    assert (tmp_path / "file").read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_another_name_of_the_same_file_keeps_its_content(tmp_path: Path) -> None:
    """A backup of hard links stays as it was."""
    (tmp_path / "file").write_bytes(b"one\n")
    (tmp_path / "backup").hardlink_to(tmp_path / "file")
    append_bytes(tmp_path / "file", b"two\n")
    write_text(tmp_path / "backup", "three")
    assert (tmp_path / "file").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "backup").read_bytes() == b"three"


def test_half_a_line_is_taken_back_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_bytes(tmp_path / "file", b"one\n")
    real = os.write

    def half(handle: int, content: bytes) -> int:
        if len(content) < 4:
            raise FULL
        return real(handle, content[:2])

    with monkeypatch.context() as full:
        full.setattr(files.os, "write", half)
        with pytest.raises(SafetyNeuronsError, match="No space left"):
            append_bytes(tmp_path / "file", b"two\n")
    append_bytes(tmp_path / "file", b"three\n")
    assert (tmp_path / "file").read_bytes() == b"one\nthree\n"


def test_no_pipe_or_device_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SafetyNeuronsError, match="pipe is a pipe, socket or device"):
        write_text(tmp_path / "pipe", "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_folder_is_not_a_file_to_write(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SafetyNeuronsError, match="cannot be written: it is a folder"):
        write_text(Path(path), "text")


def test_what_cannot_be_looked_up_does_not_pass_for_missing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    assert exists(tmp_path / "loop")
    assert exists(tmp_path / "file")
    assert not exists(tmp_path / "missing")
    assert not exists(Path("a\0b"))
    for path in (tmp_path / "loop" / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        with pytest.raises(SafetyNeuronsError, match="cannot be read"):
            exists(path)


def test_names_of_temporary_files_are_known(tmp_path: Path) -> None:
    for name in ("run.json", "é" * 120 + ".json", "two\nlines.json", "no ending"):
        with atomic_path(tmp_path / name) as temporary:
            assert is_temporary(temporary.name)
            assert temporary.suffix == (".json" if name.endswith(".json") else ".partial")
            temporary.write_text("{}")
    for name in ("run.json", ".lock", ".run.json", ".checkpoint.safetensors", "a.1.01234567.01234567.partial"):
        assert not is_temporary(name)
