"""Folders: written whole or not at all, for a while, and checked before anything in them is used."""

import contextlib
import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, exists, full_disk, new_mode
from safety_neurons.core.temporary import remove_abandoned, temporary_path

_SCRATCH = "safety-neurons"


def check_name(path: Path) -> None:
    """Check a name before anything is written there: files of tensors can only be read under a name in UTF-8.

    Raises:
        SafetyNeuronsError: the name is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise SafetyNeuronsError(
            f"The name of the folder {str(path)!r} is not UTF-8, and libraries cannot read files there. Choose another "
            "name, or rename the folder."
        ) from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder next to `path`. It becomes `path`, which must not exist, on success, or is removed.

    Raises:
        SafetyNeuronsError: `path` exists, the disk is full, or the folder above cannot be written; as `check_name`.
    """
    check_name(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_path(path) as temporary:
            temporary.mkdir()
            yield temporary
            if exists(path):
                raise SafetyNeuronsError(f"{path} exists already. Choose another folder.")
            temporary.rename(path)


def follow_umask(folder: Path) -> None:
    """Give a folder and everything in it the permissions of new files: libraries write some for the owner alone."""
    with disk_errors(folder):
        for above, _, names in os.walk(folder):
            os.chmod(above, new_mode(0o777))
            for name in names:
                os.chmod(os.path.join(above, name), new_mode(0o666))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder.

    Raises:
        SafetyNeuronsError: it cannot be removed.
    """
    with disk_errors(folder):
        remove_abandoned(folder)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder among the temporary files of the system; removed at the end, or by the next after a kill.

    Raises:
        SafetyNeuronsError: there is no place for temporary files, or it is full.
    """
    try:
        above = Path(tempfile.gettempdir())
        remove_abandoned(above, _SCRATCH)
    except OSError as error:
        raise SafetyNeuronsError(
            f"There is no folder for temporary files ({error.strerror or error}). Set TMPDIR to a folder that can be "
            "written."
        ) from error
    with temporary_path(above / _SCRATCH) as folder:
        with disk_errors(folder):
            folder.mkdir(mode=0o700)
        with full_disk(folder):
            yield folder


def prepare_cache(folder: Path) -> None:
    """Make a folder for downloads, and remove what killed downloads left in it.

    Raises:
        SafetyNeuronsError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise SafetyNeuronsError(
            f"{folder} cannot be written ({error.strerror or error}). Set SAFETY_NEURONS_CACHE to a folder for "
            "downloads that can be."
        ) from error


def check_entries(folder: Path, files: re.Pattern[str], folders: re.Pattern[str]) -> list[str]:
    """Check that what is written in a folder are regular files and folders, and no links; returns all names in it.

    A folder that does not exist has none; it may itself be a link.

    Args:
        files, folders: the names of what is written in it. Folders are checked like the folder itself.

    Raises:
        SafetyNeuronsError: one of them is something else, or the folder is a file or cannot be read; as `check_name`.
    """
    check_name(folder)
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                mode = entry.stat(follow_symlinks=False).st_mode
                if files.fullmatch(entry.name) and not stat.S_ISREG(mode):
                    raise _is_wrong(Path(entry.path), mode, "regular file")
                if folders.fullmatch(entry.name):
                    if not stat.S_ISDIR(mode):
                        raise _is_wrong(Path(entry.path), mode, "folder")
                    check_entries(Path(entry.path), files, folders)
    except FileNotFoundError:
        if folder.is_symlink():
            raise SafetyNeuronsError(
                f"{folder} is a symbolic link to a folder that does not exist. Remove it, or choose another folder."
            ) from None
    except NotADirectoryError as error:
        raise SafetyNeuronsError(f"{folder} is not a folder, or in one that is a file. Choose a folder.") from error
    except OSError as error:
        raise SafetyNeuronsError(
            f"The folder {folder} cannot be read ({error.strerror or error}). Choose another one, or mend it."
        ) from error
    return names


def _is_wrong(path: Path, mode: int, wanted: str) -> SafetyNeuronsError:
    if stat.S_ISLNK(mode):
        return SafetyNeuronsError(
            f"{path} is a symbolic link. Nothing is read or written through links here, as what they point to may "
            f"belong to somebody else. Put a copy of what it points to in its place, or remove it."
        )
    kind = "folder" if stat.S_ISDIR(mode) else "regular file" if stat.S_ISREG(mode) else "pipe, socket or device"
    return SafetyNeuronsError(f"{path} is a {kind} where a {wanted} should be. Move it away.")
