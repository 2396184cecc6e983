"""Files that are never half-written, JSON and safetensors, the JSONL cache, the folder lock and the download folder."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError, safe_open

from safety_neurons.core.errors import SafetyNeuronsError

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. It replaces `path` on success and is removed on failure.

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
            # mkstemp makes the file readable by its owner only; the result should follow the umask.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn failures of the disk (full, read-only, no permission) into errors that say what to do."""
    full = SafetyNeuronsError(
        f"No space left for {path}. No half-written file remains: free some space and run the same command again. "
        "It continues where it stopped."
    )
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise SafetyNeuronsError(
                f"{path} cannot be written ({error.strerror}). Choose another folder or change its permissions."
            ) from error
        raise
    except SafetensorError as error:
        # safetensors reports disk failures as text only.
        if "No space left" in str(error):
            raise full from error
        raise


@contextlib.contextmanager
def locked(folder: Path, advice: str) -> Iterator[None]:
    """Hold the lock of a folder (the file `.lock` in it), which must exist.

    Args:
        advice: what the user can do if another process holds the lock; ends the error message.

    Raises:
        SafetyNeuronsError: another process holds the lock, or the folder cannot be written.
    """
    import filelock

    with disk_errors(folder):
        try:
            lock = filelock.FileLock(folder / ".lock").acquire(timeout=0)
        except filelock.Timeout as error:
            raise SafetyNeuronsError(f"Another process is working on {folder}. {advice}") from error
        with lock:
            yield


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        # A tokenizer can produce lone surrogates; they must not keep a finished run from being written.
        temporary.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
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


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """Read the JSON object in a file that the user has from elsewhere; `advice` says how to get it whole.

    Raises:
        SafetyNeuronsError: the file is missing, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SafetyNeuronsError(f"{path} does not exist. {advice}") from error
    except (ValueError, RecursionError) as error:
        raise SafetyNeuronsError(f"{path} is not valid JSON ({error}). {advice}") from error
    if not isinstance(value, dict):
        raise SafetyNeuronsError(f"{path} does not hold a JSON object. {advice}")
    return value


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line. If a kill cuts it off, `read_lines` drops it."""
    with disk_errors(path), path.open("ab") as file:
        file.write(json.dumps(value, ensure_ascii=True, allow_nan=False).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file of `append_line`; an incomplete last line is removed from the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


def fingerprint(*parts: Any) -> str:
    """Short hash of the inputs, for cache keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Content hash of a file: its SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises:
        SafetyNeuronsError: the file is missing or broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Copies, as tensors within the file are not aligned, and sums over them are rounded differently.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except FileNotFoundError as error:
        raise SafetyNeuronsError(f"{path} does not exist. Run the stage that writes it first.") from error
    except SafetensorError as error:
        raise SafetyNeuronsError(f"{path} is broken ({error}). Delete it and run again.") from error


def cache_folder() -> Path:
    """The folder for downloads, which may not exist yet.

    $SAFETY_NEURONS_CACHE, else $XDG_CACHE_HOME/safety-neurons, else ~/.cache/safety-neurons.

    Raises:
        SafetyNeuronsError: there is no home folder.
    """
    try:
        configured = os.environ.get("SAFETY_NEURONS_CACHE", "").strip()
        if configured:
            return Path(configured).expanduser().absolute()
        shared = os.environ.get("XDG_CACHE_HOME", "").strip()
        # The XDG Base Directory Specification: relative paths must be ignored.
        if shared and os.path.isabs(shared):
            return Path(shared) / "safety-neurons"
        return Path.home() / ".cache" / "safety-neurons"
    except RuntimeError as error:
        raise SafetyNeuronsError(
            f"The home folder for the cache was not found ({error}). "
            "Set SAFETY_NEURONS_CACHE to the absolute path of a folder for downloads."
        ) from error


@dataclass
class JsonlCache:
    """An append-only cache of JSON lines by key, so that no result is computed twice.

    Each line is written as soon as it is added, and a line cut off by a kill is dropped on reading. With the path
    None nothing is written.
    """

    path: Path | None
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Load the lines of an earlier process, if there are any."""
        return cls(path, {} if path is None else {line["key"]: line for line in read_lines(path)})

    def add(self, key: str, line: Mapping[str, Any]) -> dict[str, Any]:
        """Append a line and return it with its key."""
        entry = {"key": key, **line}
        if self.path is not None:
            append_line(self.path, entry)
        self.entries[key] = entry
        return entry
