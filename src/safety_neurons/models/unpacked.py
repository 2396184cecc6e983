"""Unpacked models in the cache: each complete, made by one process at a time, and made again if it is damaged."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import cache_folder, disk_errors, read_text, write_text
from safety_neurons.core.folders import remove_leftovers
from safety_neurons.core.progress import Listener
from safety_neurons.models.identity import folder_identity

# What is in the folder of an unpacked model besides it: the identity of its files.
RECORD = "unpacked.identity"


def model_folder(sha256: str) -> Path:
    """The folder of the unpacked GGUF file with this checksum."""
    # Version 0.1 unpacked to "models", and did not check that no weight was missing.
    return cache_folder() / "unpacked" / sha256[:16]


def record(folder: Path) -> None:
    """Note the identity of a model that was just unpacked."""
    write_text(folder / RECORD, folder_identity(folder))


def is_unpacked(folder: Path) -> bool:
    """Whether a model was unpacked here, and its files are as they were then, by their sizes and samples of bytes."""
    if not (folder / RECORD).is_file():
        return False
    try:
        return read_text(folder / RECORD) == folder_identity(folder)
    except (SafetyNeuronsError, OSError):
        # As good as damaged: it is made again.
        return False


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def unpacking(folder: Path, listener: Listener, name: str) -> Iterator[bool]:
    """Be the only process that unpacks a model; whether it is still needed, once another one has finished.

    What a killed process left half-unpacked, and a damaged model, are removed.

    Raises:
        SafetyNeuronsError: the cache cannot be written.
    """
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(_made(folder.parent.with_name("locks")) / f"{folder.name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            listener.say(f"Another process unpacks {name}: waiting for it.")
            lock.acquire()
    with lock:
        needed = not is_unpacked(folder)
        if needed:
            with disk_errors(folder):
                remove_leftovers(folder.parent)
                if folder.is_dir() and not folder.is_symlink():
                    if (folder / RECORD).exists():
                        listener.say(f"The unpacked model {folder} is damaged: it is unpacked again.")
                    shutil.rmtree(folder)
        yield needed
