"""The lock of a folder: one process at a time works on it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, full_disk, remove_leftovers

NAME = ".lock"
# How often a folder is made again that its last holder removed at the same moment.
_ATTEMPTS = 10


@contextlib.contextmanager
def locked(folder: Path, advice: str = "Wait for it, or choose another folder.") -> Iterator[None]:
    """Hold the lock of a folder (the file `.lock` in it), which is made if it is missing.

    What killed processes left half-written in it is removed first. A folder that was made for this lock, and in which
    nothing else was made, is removed at the end: by the holder alone. This thread may lock the folder again within.

    Args:
        advice: what the user can do if another process holds the lock; ends the error message.

    Raises:
        SafetyNeuronsError: another process holds the lock, the disk is full, or the folder cannot be written.
    """
    lock, made = _acquired(folder, advice)
    try:
        with full_disk(folder):
            remove_leftovers(folder)
            yield
    finally:
        if made and folder.is_dir() and [entry.name for entry in folder.iterdir()] == [NAME]:
            (folder / NAME).unlink()
            folder.rmdir()
        lock.release()


def _acquired(folder: Path, advice: str) -> tuple[filelock.BaseFileLock, bool]:
    """The lock, and whether the folder was made for it."""
    with disk_errors(folder / NAME):
        for _ in range(_ATTEMPTS):
            made = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            # The same object for the same path, so that this thread can lock it again.
            lock = filelock.FileLock(folder.resolve() / NAME, is_singleton=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if (folder / NAME).exists():
                    raise SafetyNeuronsError(f"Another process is working on {folder}. {advice}") from None
            except FileNotFoundError:
                # The last holder removed the folder in between.
                continue
            else:
                return lock, made
        raise SafetyNeuronsError(f"Another process is working on {folder}. {advice}")
