"""Folders are written whole or not at all, and what is in a run's folder are files of its own."""

import os
import re
import socket
import stat
import tempfile
import time
from pathlib import Path

import pytest

from safety_neurons.core import folders
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.folders import (
    atomic_folder,
    check_entries,
    follow_umask,
    prepare_cache,
    remove_leftovers,
    scratch_folder,
)
from safety_neurons.core.temporary import process_namespace, temporary_path

FILES, FOLDERS = re.compile(r".*\.json"), re.compile("replaced")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_folder_is_there_when_it_is_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "above" / "new") as temporary:
        (temporary / "file").write_text("content")
        assert os.listdir(tmp_path / "above") == [temporary.name]
    assert (tmp_path / "above" / "new" / "file").read_text() == "content"
    assert os.listdir(tmp_path / "above") == ["new"]


def test_a_failure_leaves_no_folder_and_an_existing_one_stays(tmp_path: Path) -> None:

    def interrupted() -> None:
        with atomic_folder(tmp_path / "new") as temporary:
            (temporary / "file").write_text("content")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []
    with pytest.raises(SafetyNeuronsError, match="new exists already"), atomic_folder(tmp_path / "new"):
        (tmp_path / "new").mkdir()
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_of_a_folder_follow_the_umask(umask: int, tmp_path: Path) -> None:
    (tmp_path / "new" / "sub").mkdir(parents=True, mode=0o700)
    (tmp_path / "new" / "sub" / "weights").touch(mode=0o600)
    before = os.umask(umask)
    try:
        follow_umask(tmp_path / "new")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "new") == mode_of(tmp_path / "new" / "sub") == 0o777 & ~umask
    assert mode_of(tmp_path / "new" / "sub" / "weights") == 0o666 & ~umask


def test_a_scratch_folder_is_removed_also_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as mine:
        assert mode_of(mine) == 0o700
        (mine / "file").write_text("content")
        # Of another program, and of a process that was killed.
        (tmp_path / f".other.99999999.{process_namespace()}.01234567.partial").mkdir()
        (tmp_path / f".safety-neurons.99999999.{process_namespace()}.01234567.partial").mkdir()
        with scratch_folder() as second:
            assert {one.name for one in tmp_path.iterdir()} == {
                mine.name,
                second.name,
                f".other.99999999.{process_namespace()}.01234567.partial",
            }
    assert os.listdir(tmp_path) == [f".other.99999999.{process_namespace()}.01234567.partial"]


def test_what_another_container_writes_is_removed_only_when_it_is_old(tmp_path: Path) -> None:
    """The numbers of its processes mean nothing here."""
    theirs, old = (tmp_path / f".run.json.{os.getpid()}.{space}.01234567.partial" for space in ("0" * 8, "f" * 8))
    for file in (theirs, old):
        file.touch()
    two_days_ago = time.time() - 2 * 24 * 60 * 60 - 1
    os.utime(old, (two_days_ago, two_days_ago))
    with temporary_path(tmp_path / "mine") as mine:
        assert f".{process_namespace()}." in mine.name
        mine.touch()
        remove_leftovers(tmp_path)
        assert set(tmp_path.iterdir()) == {theirs, mine}


def test_no_place_for_temporary_files_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(SafetyNeuronsError, match="Set TMPDIR to a folder"), scratch_folder():
        pass


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_cache(tmp_path / "cache" / "prompts")
    assert (tmp_path / "cache" / "prompts").is_dir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SafetyNeuronsError, match="Set SAFETY_NEURONS_CACHE"):
        prepare_cache(tmp_path / "file" / "prompts")
    # Not chmod: the tests may run as root, who may write everywhere.
    monkeypatch.setattr(folders.os, "access", lambda *_: False)
    with pytest.raises(SafetyNeuronsError, match="Set SAFETY_NEURONS_CACHE"):
        prepare_cache(tmp_path / "cache")


def irregular(folder: Path, name: str) -> None:
    """Something in the place of a file or folder."""
    path = folder / name.partition(" ")[0]
    kind = name.partition(" ")[2]
    if kind == "link":
        path.symlink_to(folder.parent / "precious")
    elif kind == "dangling":
        path.symlink_to(folder / "nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("{}")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("run.json link", r"run\.json is a symbolic link\."),
        ("run.json dangling", r"run\.json is a symbolic link\."),
        ("run.json pipe", r"run\.json is a pipe, socket or device where a regular file should be\. Move it away\."),
        ("run.json socket", r"run\.json is a pipe, socket or device where a regular file should be"),
        ("run.json folder", r"run\.json is a folder where a regular file should be"),
        ("replaced link", r"replaced is a symbolic link\."),
        ("replaced file", r"replaced is a regular file where a folder should be"),
    ],
)
def test_what_is_written_are_files_and_folders(wrong: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    irregular(folder, wrong)
    with pytest.raises(SafetyNeuronsError, match=message):
        check_entries(folder, FILES, FOLDERS)
    assert (tmp_path / "precious").read_text() == "mine"


def test_folders_within_are_checked_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "run" / "replaced").mkdir(parents=True)
    (tmp_path / "run" / "a.json").write_text("{}")
    (tmp_path / "run" / "notes").symlink_to(tmp_path)
    # The folder itself may be on another disk.
    (tmp_path / "linked").symlink_to(tmp_path / "run")
    assert sorted(check_entries(tmp_path / "linked", FILES, FOLDERS)) == ["a.json", "notes", "replaced"]
    assert check_entries(tmp_path / "missing", FILES, FOLDERS) == []
    (tmp_path / "run" / "replaced" / "b.json").symlink_to(tmp_path)
    with pytest.raises(SafetyNeuronsError, match=r"replaced/b\.json is a symbolic link"):
        check_entries(tmp_path / "run", FILES, FOLDERS)
    for name, message in (("a.json", "is not a folder"), ("gone", "to a folder that does not exist")):
        if name == "gone":
            (tmp_path / "run" / "gone").symlink_to(tmp_path / "nowhere")
        with pytest.raises(SafetyNeuronsError, match=message):
            check_entries(tmp_path / "run" / name, FILES, FOLDERS)


def test_leftovers_are_removed_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    left = tmp_path / f".merged.99999999.{process_namespace()}.01234567.partial"
    left.mkdir()
    (left / "link").symlink_to(tmp_path / "precious")
    (tmp_path / f".other.99999999.{process_namespace()}.01234567.partial").symlink_to(tmp_path / "precious")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["precious"]
    assert (tmp_path / "precious" / "file").read_text() == "mine"


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/u\xff"))
    with pytest.raises(SafetyNeuronsError, match=r"is not UTF-8.*Choose another name"):
        check_entries(folder, FILES, FOLDERS)
    with pytest.raises(SafetyNeuronsError, match="is not UTF-8"), atomic_folder(folder):
        pass
    assert os.listdir(tmp_path) == []
