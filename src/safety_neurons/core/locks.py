"""The lock of a folder: one process at a time works on it."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import filelock

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, exists, full_disk
from safety_neurons.core.folders import remove_leftovers

NAME = ".lock"
# How often a folder is made again that its last holder removed at the same moment.
_ATTEMPTS = 10


@contextlib.contextmanager
def locked(folder: Path, advice: str = "Wait for it, or choose another folder.") -> Iterator[None]:
    """Hold the lock of a folder (the file `.lock` in it), which is made if it is missing.

    What killed processes left half-written in it is removed first. Folders that were made for this lock, and in which
    nothing else was made, are removed at the end: by the holder alone. This thread may lock the folder again within.

    Args:
        advice: what the user can do if another process holds the lock; ends the error message.

    Raises:
        SafetyNeuronsError: another process holds the lock, the disk is full, the folder cannot be written, or it was
            removed or replaced meanwhile.
    """
    lock, made = _acquired(folder, advice)
    try:
        file = _identity(folder)
        with full_disk(folder):
            remove_leftovers(folder)
            yield
        if _identity(folder) != file:
            raise SafetyNeuronsError(
                f"{folder} was moved or removed while this process worked on it, so files are missing there. Run the "
                "same command again."
            )
    finally:
        if made:
            # Another process may already be there, or the folder gone.
            with contextlib.suppress(OSError):
                if os.listdir(folder) == [NAME]:
                    (folder / NAME).unlink()
                for one in made:
                    one.rmdir()
        lock.release()


def _identity(folder: Path) -> tuple[int, int] | None:
    """Which file the lock is; None if there is none."""
    try:
        found = (folder / NAME).lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _acquired(folder: Path, advice: str) -> tuple[filelock.BaseFileLock, list[Path]]:
    """The lock, and the folders that were made for it, the inner ones first."""
    path = folder / NAME
    with disk_errors(path):
        for _ in range(_ATTEMPTS):
            made = [one for one in (folder, *folder.parents) if not one.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            _check(path)
            # The same object for the same path, so that this thread can lock it again.
            lock = filelock.FileLock(folder.resolve() / NAME, is_singleton=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if path.exists():
                    raise SafetyNeuronsError(f"Another process is working on {folder}. {advice}") from None
            except FileNotFoundError:
                # The last holder removed the folder in between.
                continue
            except NotImplementedError as error:
                raise OSError(errno.ENOSYS, "this file system has no locks") from error
            else:
                return lock, made
        raise SafetyNeuronsError(f"Another process is working on {folder}. {advice}")


def _check(path: Path) -> None:
    """Some versions of filelock empty the file, and a link is another file."""
    if not exists(path):
        return
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise SafetyNeuronsError(f"{path} is a symbolic link, and a lock has to be a file. Remove it.")
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise SafetyNeuronsError(f"{path} is not the lock of this folder but something else. Move it away.")
