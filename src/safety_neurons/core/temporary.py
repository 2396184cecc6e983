"""Files and folders that exist for a while: their names, by which a later process knows those of a killed one."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

# Hidden, with the number of the process that writes it.
_TEMPORARY = re.compile(r"\..*\.(?P<process>\d+)\.[0-9a-f]{8}\.partial(\.[^.]+)?", re.DOTALL)
# What this process is writing: another process may have had its number before, and have left files.
_being_written: set[str] = set()


@contextlib.contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Yield a path next to `path` for a file or folder, which is removed at the end if it is still there.

    After a kill, `remove_abandoned` knows it by its name.
    """
    # Names have at most 255 bytes.
    stem, ending = (os.fsencode(part)[:length] for part, length in ((path.name, 180), (path.suffix, 20)))
    name = os.fsdecode(b".%b.%d.%b.partial%b" % (stem, os.getpid(), secrets.token_hex(4).encode(), ending))
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

    What a process that runs is writing stays, and what belongs to another user.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found and entry.name.startswith(f".{stem}") and not _is_written(entry.name, int(found["process"])):
                with contextlib.suppress(FileNotFoundError):
                    if os.geteuid() in (0, entry.stat(follow_symlinks=False).st_uid):
                        remove(Path(entry.path))


def is_temporary(name: str) -> bool:
    """Whether a file of this name was left half-written, or is being written."""
    return _TEMPORARY.fullmatch(name) is not None


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
