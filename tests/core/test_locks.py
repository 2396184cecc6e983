"""One process at a time works on a folder, and only the holder of a lock removes it."""

import errno
import os
import shutil
from pathlib import Path

import filelock
import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import write_text
from safety_neurons.core.locks import locked
from safety_neurons.core.temporary import process_namespace, temporary_path

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
    folder = tmp_path / "above" / "new"
    with locked(folder):
        assert not lock_elsewhere(folder)
        assert not lock_elsewhere(folder)
        assert sorted(os.listdir(folder)) == [".lock"]
    assert not folder.parent.exists()


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
    with temporary_path(tmp_path / "run.json") as mine:
        mine.write_text("content")
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        dead = tmp_path / mine.name.replace(f".{os.getpid()}.", f".{child}.")
        # As in a container that starts again, whose processes have the same numbers.
        earlier = tmp_path / f".run.json.{os.getpid()}.{process_namespace()}.01234567.partial.json"
        others = [tmp_path / name for name in (".run.json", ".hidden.1.txt", "run.json", "notes.partial")]
        for file in (dead, earlier, *others):
            file.write_text("content")
        folder = tmp_path / f".merged.{child}.{process_namespace()}.01234567.partial"
        folder.mkdir()
        (folder / "config.json").symlink_to(tmp_path / "run.json")
        (tmp_path / f".linked.{child}.{process_namespace()}.01234567.partial").symlink_to(tmp_path)
        with locked(tmp_path):
            assert sorted(os.listdir(tmp_path)) == sorted([".lock", mine.name, *(file.name for file in others)])


@pytest.mark.parametrize("change", ["removed", "moved", "another"])
def test_a_folder_that_vanishes_meanwhile_is_an_error(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def work() -> None:
        with locked(folder):
            folder.rename(tmp_path / "elsewhere")
            if change == "removed":
                shutil.rmtree(tmp_path / "elsewhere")
            elif change == "another":
                with locked(folder):
                    write_text(folder / "file", "of another process")
            write_text(folder / "results.json", "{}")

    with pytest.raises(SafetyNeuronsError, match=r"run was moved or removed while .* Run the same command again"):
        work()
    assert (folder / "results.json").exists()
    assert (folder / "file").exists() is (change == "another")


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOLCK, "No locks available"),
        OSError(errno.EOPNOTSUPP, "Operation not supported"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        NotImplementedError("FileSystem does not appear to support flock"),
    ],
)
def test_a_file_system_without_locks_is_an_error(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_arguments: object, **_options: object) -> None:
        raise failure

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(SafetyNeuronsError, match=r"run/\.lock cannot be written \("), locked(tmp_path / "run"):
        pass


def test_what_is_not_a_lock_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(SafetyNeuronsError, match=r"\.lock is not the lock of this folder"), locked(tmp_path):
        pass
    (tmp_path / ".lock").unlink()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").hardlink_to(tmp_path / "precious")
    with pytest.raises(SafetyNeuronsError, match=r"\.lock is not the lock of this folder"), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
