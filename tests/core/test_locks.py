"""One process at a time works on a folder, and only the holder of a lock removes it."""

import errno
import os
from pathlib import Path

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import temporary_name
from safety_neurons.core.locks import locked

FULL = OSError(errno.ENOSPC, "No space left on device")


def lock_elsewhere(folder: Path) -> bool:
    """Whether another process can lock the folder."""
    child = os.fork()
    if child == 0:
        try:
            with locked(folder, "Wait for it to end."):
                os._exit(0)
        except SafetyNeuronsError:
            os._exit(1)
        finally:
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1)
    return status == 0


def test_a_locked_folder_is_refused_until_it_is_free(tmp_path: Path) -> None:
    with locked(tmp_path):
        for _ in range(3):
            assert not lock_elsewhere(tmp_path)
    assert lock_elsewhere(tmp_path)


def test_whoever_is_refused_removes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with locked(folder):
        assert not lock_elsewhere(folder)
        assert not lock_elsewhere(folder)
        assert sorted(os.listdir(folder)) == [".lock"]
    assert not folder.exists()


def test_the_holder_can_lock_again(tmp_path: Path) -> None:
    with locked(tmp_path):
        with locked(tmp_path):
            assert not lock_elsewhere(tmp_path)
        assert not lock_elsewhere(tmp_path)


def test_a_folder_that_was_made_stays_with_what_was_made_in_it(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        (tmp_path / "new" / "file").write_text("kept")
    assert (tmp_path / "new" / "file").read_text() == "kept"
    (tmp_path / "empty").mkdir()
    with locked(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


def test_a_lock_is_released_after_an_error_and_tells_of_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="No space left"), locked(tmp_path):
        raise FULL
    assert lock_elsewhere(tmp_path)


def test_errors_within_that_are_not_of_the_disk_pass_through(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), locked(tmp_path):
        raise ConnectionError("a server")


def test_a_lock_in_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("I am a file")
    with pytest.raises(SafetyNeuronsError, match=r"taken.* cannot be written"), locked(tmp_path / "taken"):
        pass


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "target")
    with pytest.raises(SafetyNeuronsError, match="symbolic link"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "target").read_text() == "precious"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    prefix, suffix = temporary_name(tmp_path / "run.json")
    mine = tmp_path / f"{prefix}abcdefgh{suffix}"
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    dead = tmp_path / mine.name.replace(f".{os.getpid()}.", f".{child}.")
    others = [tmp_path / name for name in (".run.json", ".hidden.1.txt", "run.json", "notes.partial")]
    for file in (mine, dead, *others):
        file.write_text("content")
    (tmp_path / f".merged.{child}.abcdefgh.partial").mkdir()
    (tmp_path / f".merged.{child}.abcdefgh.partial" / "config.json").write_text("{}")
    with locked(tmp_path):
        assert sorted(os.listdir(tmp_path)) == sorted([".lock", mine.name, *(file.name for file in others)])
