"""A file of results, one JSON line each, that are found again by a key: what is in it is never computed twice.

Files that are never half-written: written under a temporary name, synced, then renamed.

The one folder that keeps what was downloaded."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import filelock
from safetensors import SafetensorError

from safety_neurons.core.errors import SafetyNeuronsError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any failure it is removed.

    Raises:
        SafetyNeuronsError: the disk is full or the folder cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            # mkstemp makes files that only their owner can read; the result should follow the umask.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the disk's failures (full, read-only, not permitted) into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise SafetyNeuronsError(
                f"{path} cannot be written ({error.strerror}). Choose another folder or change its permissions."
            ) from error
        raise
    except SafetensorError as error:
        # safetensors reports the disk's failures as text only.
        if "No space left" in str(error):
            raise disk_full(path) from error
        raise


def disk_full(path: Path) -> SafetyNeuronsError:
    """The error for a disk without space."""
    return SafetyNeuronsError(
        f"No space is left for {path}. Nothing half-written was kept: free some space and run the same "
        "command again, it goes on where it stopped."
    )


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file in one step."""
    with atomic_path(path) as temporary:
        # Lone surrogates can come out of a tokenizer; they must not make a finished run unwritable.
        temporary.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        SafetyNeuronsError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SafetyNeuronsError(f"{path} does not exist.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SafetyNeuronsError(f"{path} is not valid JSON ({error}). Delete it and run again.") from error


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line; a line cut off by a kill is dropped when the file is read again."""
    with disk_errors(path), path.open("ab") as file:
        file.write(json.dumps(value, ensure_ascii=True, allow_nan=False).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file that we wrote; a last line without its end is cut off, from the file too."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


def fingerprint(*parts: Any) -> str:
    """A short name for exactly these inputs."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """The folder for downloads: $SAFETY_NEURONS_CACHE, else $XDG_CACHE_HOME/safety-neurons, else ~/.cache.

    The folder is not created here: whoever writes into it does that.

    Raises:
        SafetyNeuronsError: there is no home folder to put it in.
    """
    try:
        own = os.environ.get("SAFETY_NEURONS_CACHE", "").strip()
        if own:
            return Path(own).expanduser().absolute()
        shared = os.environ.get("XDG_CACHE_HOME", "").strip()
        # The XDG Base Directory Specification says that a relative path here is to be ignored.
        if shared and os.path.isabs(shared):
            return Path(shared) / "safety-neurons"
        return Path.home() / ".cache" / "safety-neurons"
    except RuntimeError as error:
        raise SafetyNeuronsError(
            f"No home folder was found for the cache ({error}). "
            "Set SAFETY_NEURONS_CACHE to the absolute path of a folder for downloads."
        ) from error


@dataclass
class JsonlCache:
    """The file, and its lines by key. Without a path nothing is written."""

    path: Path | None
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """What an earlier, perhaps killed, process left there."""
        return cls(path, {} if path is None else {line["key"]: line for line in read_lines(path)})

    def add(self, key: str, line: Mapping[str, Any]) -> dict[str, Any]:
        """Append a line as soon as it is known."""
        kept = {"key": key, **line}
        if self.path is not None:
            append_line(self.path, kept)
        self.entries[key] = kept
        return kept


@contextlib.contextmanager
def locked(folder: Path, advice: str) -> Iterator[None]:
    """Hold the folder's lock, so that no other process works on it; the folder is created if it does not exist.

    Raises:
        SafetyNeuronsError: another process holds the lock (`advice` says what to do), or the disk failed.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors(folder), filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise SafetyNeuronsError(f"Another process is working on {folder}. {advice}") from error
