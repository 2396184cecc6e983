"""Files and folders that exist for a while: their names, by which a later process knows those of a killed one."""

import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

# Hidden, with the number of the process that writes it, and the namespace in which that number means something.
_TEMPORARY = re.compile(
    r"\..*\.(?P<process>\d+)\.(?P<namespace>[0-9a-f]{8})\.[0-9a-f]{8}\.partial(\.[^.]+)?", re.DOTALL
)
# After how many seconds without a change something of another namespace is abandoned.
_ABANDONED = 2 * 24 * 60 * 60
# What this process is writing: another process may have had its number before, and have left files.
_being_written: set[str] = set()


@contextlib.contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Yield a path next to `path` for a file or folder, which is removed at the end if it is still there.

    After a kill, `remove_abandoned` knows it by its name.
    """
    # Names have at most 255 bytes.
    stem, ending = (os.fsencode(part)[:length] for part, length in ((path.name, 180), (path.suffix, 20)))
    own = f".{os.getpid()}.{process_namespace()}.{secrets.token_hex(4)}.partial"
    name = os.fsdecode(b".%b%b%b" % (stem, own.encode(), ending))
    temporary = path.with_name(name)
    _being_written.add(name)
    try:
        yield temporary
    finally:
        remove(temporary)
        _being_written.discard(name)


def remove(path: Path) -> None:
    """Remove a file, a folder with everything in it, or a link, if it exists. No link is followed."""
    try:
        path.unlink()
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        # POSIX lets unlink of a folder fail with EPERM.
        if not path.is_dir() or path.is_symlink():
            raise
        shutil.rmtree(path)


def remove_abandoned(folder: Path, stem: str = "") -> None:
    """Remove what killed processes left of `temporary_path` in a folder, for paths whose names begin with `stem`.

    What a process that runs is writing stays, and what belongs to another user. Whether a process of another
    container or machine runs cannot be told: what it has not changed for two days is removed.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if not found or not entry.name.startswith(f".{stem}"):
                continue
            with contextlib.suppress(FileNotFoundError):
                about = entry.stat(follow_symlinks=False)
                if found["namespace"] == process_namespace():
                    written = _is_written(entry.name, int(found["process"]))
                else:
                    written = time.time() - about.st_mtime < _ABANDONED
                if not written and os.geteuid() in (0, about.st_uid):
                    remove(Path(entry.path))


def is_temporary(name: str) -> bool:
    """Whether a file of this name was left half-written, or is being written."""
    return _TEMPORARY.fullmatch(name) is not None


@functools.cache
def process_namespace() -> str:
    """Where the number of a process is unique, as 8 hexadecimal digits: a container, or else the machine."""
    try:
        # Every boot numbers its namespaces anew.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        place = f"{os.stat('/proc/self/ns/pid').st_ino} {boot}"
    except OSError:
        place = socket.gethostname()
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def _is_written(name: str, process: int) -> bool:
    """Whether a process that runs is writing a temporary file or folder."""
    if process == os.getpid():
        return name in _being_written
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        # It is somebody else's.
        return True
    return True
