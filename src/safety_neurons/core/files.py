"""Files: read whole, regular and bounded; written atomically, through no link; and the folder for downloads."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.temporary import temporary_path

# The largest text file that is read.
MOST_BYTES = 1 << 30
# The largest file of any kind that is opened.
MOST_BYTES_OF_WEIGHTS = 1 << 42
# A larger file is dense, or not what its name says.
_MAY_BE_SPARSE = 1 << 26
# The largest JSON file that is read whole: many times what a run writes. Python's objects take 30 times its bytes.
MOST_JSON_BYTES = 64 << 20
# What the user can do about a file that cannot be read, where nothing more is known.
ADVICE = "Choose another file, or a whole copy of this one."
# Controls, marks that reorder or hide what stands beside them, separators and lone surrogates.
_HIDDEN = re.compile(
    "[\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


@contextlib.contextmanager
def atomic_path(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `path`. It replaces `path` on success and is removed on failure.

    Args:
        private: only the owner may read the file; otherwise the umask decides.

    Raises:
        SafetyNeuronsError: the disk is full, the folder cannot be written, or `path` is a link, pipe or device.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_irregular(path)
        with temporary_path(path) as temporary:
            temporary.touch(mode=0o600, exist_ok=False)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o600 if private else new_mode(0o666))
            temporary.replace(path)


def new_mode(wanted: int) -> int:
    """The permissions of a new file or folder: those that are wanted, less the umask."""
    umask = os.umask(0)
    os.umask(umask)
    return wanted & ~umask


def exists(path: Path) -> bool:
    """Whether there is a file, folder or link of this name.

    Raises:
        SafetyNeuronsError: nobody can tell, for example because the folder cannot be read.
    """
    try:
        path.lstat()
    except (FileNotFoundError, ValueError):
        # ValueError: no file has a name with a NUL byte.
        return False
    except OSError as error:
        raise SafetyNeuronsError(
            f"{path} cannot be read ({error.strerror or error}). Choose another place, or mend this one."
        ) from error
    return True


def _refuse_irregular(path: Path) -> None:
    if path.is_symlink():
        raise SafetyNeuronsError(
            f"{path} is a symbolic link, so it is not written: what it points to would change. Remove the link, or "
            "choose another place."
        )
    if path.is_dir():
        raise SafetyNeuronsError(f"{path} cannot be written: it is a folder. Name a file, or move the folder away.")
    if path.exists() and not path.is_file():
        raise SafetyNeuronsError(
            f"{path} is a pipe, socket or device, not a regular file, so it is not written. Choose another place."
        )


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn failures of the disk (full, read-only, no permission, gone) into errors that say what to do."""
    try:
        with full_disk(path):
            yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            _refuse_irregular(path)
        raise SafetyNeuronsError(
            f"{path} cannot be written ({error.strerror or error}). Choose another folder, or mend this one."
        ) from error


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Turn a full disk into an error that says what to do."""
    full = SafetyNeuronsError(
        f"No space left for {path}. No half-written file remains: free some space and run the same command again. "
        "It continues where it stopped."
    )
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full from error
        raise
    except SafetensorError as error:
        # safetensors reports disk failures as text only.
        if "No space left" in str(error):
            raise full from error
        raise


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path, private=private) as temporary:
        # A tokenizer can produce lone surrogates; they must not keep a finished run from being written.
        temporary.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Write a JSON file atomically. It shows every script, but hidden characters as escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # They can only stand within strings.
    text = _HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)
    write_text(path, text + "\n", private=private)


@contextlib.contextmanager
def open_regular(path: Path, advice: str = ADVICE, limit: int = MOST_BYTES) -> Iterator[BufferedReader]:
    """Open a file to read: a regular one of at most `limit` bytes. A link to one is followed.

    Args:
        advice: what the user can do about it; ends the error message.

    Raises:
        SafetyNeuronsError: the file is missing, unreadable, too large, full of holes, or a folder, pipe or device.
    """
    if "\0" in str(path):
        raise SafetyNeuronsError(f"No file has a name with a NUL byte, as in {str(path)!r}. {advice}")
    with read_errors(path, advice), open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise SafetyNeuronsError(f"{path} is not a regular file but a pipe, socket or device. {advice}")
        if found.st_size > limit:
            raise SafetyNeuronsError(f"{path} has {found.st_size:,} bytes; at most {limit:,} are read. {advice}")
        if found.st_size > _MAY_BE_SPARSE and (stored := _on_disk(file, found)) < found.st_size / 16:
            raise SafetyNeuronsError(
                f"{path} says that it has {found.st_size:,} bytes, and {stored:,} of them are on the disk: it is a "
                f"file of holes, which are read as zeros. {advice}"
            )
        yield file


def _on_disk(file: BufferedReader, found: os.stat_result) -> int:
    """The number of bytes that are stored of a file: all of them if it has no hole, also where a disk compresses it.

    Where the system knows no holes, its blocks decide.
    """
    if hasattr(os, "SEEK_HOLE"):
        first_hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        if first_hole == found.st_size:
            return found.st_size
    return int(getattr(found, "st_blocks", found.st_size) * 512)


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting until somebody writes into a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextlib.contextmanager
def read_errors(path: Path, advice: str) -> Iterator[None]:
    """Turn failures to read a file into errors that say what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise SafetyNeuronsError(f"{path} does not exist. {advice}") from error
    except IsADirectoryError as error:
        raise SafetyNeuronsError(f"{path} is a folder where a file should be. {advice}") from error
    except OSError as error:
        raise SafetyNeuronsError(f"{path} cannot be read ({error.strerror or error}). {advice}") from error


def read_bytes(path: Path, advice: str = ADVICE, limit: int = MOST_BYTES) -> bytes:
    """The content of a regular file; arguments and errors as `open_regular`."""
    with open_regular(path, advice, limit) as file:
        # A file can grow while it is read, and `read` makes room for as much as it may read.
        return file.read(os.fstat(file.fileno()).st_size)


def read_text(path: Path, advice: str = ADVICE, limit: int = MOST_BYTES) -> str:
    """The content of a UTF-8 text file, without its byte order mark.

    Raises:
        SafetyNeuronsError: as `open_regular`, or the file is not UTF-8.
    """
    try:
        return read_bytes(path, advice, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SafetyNeuronsError(f"{path} is not UTF-8 text ({error}). {advice}") from error


def read_json(path: Path, advice: str = ADVICE, limit: int = MOST_JSON_BYTES, *, finite: bool = True) -> Any:
    """Read a JSON file.

    Args:
        finite: refuse NaN and infinity, which are not JSON, though some writers use them.

    Raises:
        SafetyNeuronsError: as `read_text`, or the file is not JSON.
    """
    text = read_text(path, advice, limit)
    try:
        return json.loads(text, parse_constant=refuse_constant if finite else None)
    except (ValueError, RecursionError) as error:
        raise SafetyNeuronsError(f"{path} is not valid JSON ({error}). {advice}") from error


def refuse_constant(name: str) -> NoReturn:
    """For `json.loads`: NaN and infinity are not JSON."""
    raise ValueError(f"{name} is not a number")


def read_object(
    path: Path, advice: str = ADVICE, limit: int = MOST_JSON_BYTES, *, finite: bool = True
) -> dict[str, Any]:
    """Read a JSON object; arguments and errors as `read_json`, and where the file holds something else."""
    value = read_json(path, advice, limit, finite=finite)
    if not isinstance(value, dict):
        raise SafetyNeuronsError(f"{path} does not hold a JSON object. {advice}")
    return value


def append_bytes(path: Path, content: bytes) -> None:
    """Append to a file that only its owner can read, or create it.

    Raises:
        SafetyNeuronsError: the disk is full, or `path` cannot be written, or is a link, pipe or device.
    """
    with disk_errors(path):
        with _open_to_append(path) as file:
            if os.fstat(file.fileno()).st_nlink == 1:
                _append(file.fileno(), content)
                return
        # Another name of the same file, such as that of a backup, keeps what it has.
        with atomic_path(path, private=True) as temporary:
            shutil.copyfile(path, temporary)
        with _open_to_append(path) as file:
            _append(file.fileno(), content)


def _open_to_append(path: Path) -> FileIO:
    """Open a file that its owner alone can read, now at the latest."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = FileIO(os.open(path, flags, 0o600), "ab")
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        file.close()
        raise SafetyNeuronsError(f"{path} is not a regular file, so it is not written. Remove it.")
    if os.geteuid() in (0, found.st_uid) and stat.S_IMODE(found.st_mode) != 0o600:
        os.fchmod(file.fileno(), 0o600)
    return file


def _append(handle: int, content: bytes) -> None:
    """Append all or nothing, unless the process is killed meanwhile."""
    before = os.fstat(handle).st_size
    left = memoryview(content)
    try:
        while left:
            left = left[os.write(handle, left) :]
    except OSError:
        os.ftruncate(handle, before)
        raise


def fingerprint(*parts: Any) -> str:
    """Short hash of the inputs, for cache keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path, advice: str = ADVICE) -> str:
    """Content hash of a file: its SHA-256 in hexadecimal.

    Args:
        advice: what the user can do about a file that cannot be read.

    Raises:
        SafetyNeuronsError: the file cannot be read, or is not a regular one.
    """
    with open_regular(path, advice, MOST_BYTES_OF_WEIGHTS) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
