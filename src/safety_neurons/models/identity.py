"""The identity of a folder of weights, and of any file or folder that a setting names."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import MOST_BYTES_OF_WEIGHTS, fingerprint, open_regular, read_errors
from safety_neurons.models.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS, GET_AGAIN, MODEL_CONFIG

# The most files and folders in a folder of data.
_MOST_FILES = 10_000
# A file of up to this many bytes is hashed whole, as is every file of a folder of data of up to this many.
_WHOLE = 1 << 30
_CORRECT = "Correct the setting that names it."


def folder_identity(folder: Path) -> str:
    """Identity of a folder of weights: a hash of the names, sizes and samples of the bytes of its files.

    An adapter beside a model does not count.
    """
    digest = hashlib.sha256()
    beside = (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if (folder / MODEL_CONFIG).exists() else ()
    # Chat templates with names lie in a folder of their own.
    for path in [*sorted(folder.glob("*")), *sorted(folder.glob("*/*.jinja"))]:
        if path.suffix not in (".json", ".safetensors", ".jinja", ".model", ".txt", ".py") or not path.is_file():
            continue
        if path.name in beside:
            continue
        with open_regular(path, GET_AGAIN, MOST_BYTES_OF_WEIGHTS) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{path.name}:{size};".encode())
            for sample in _samples(file, size):
                digest.update(sample)
    return digest.hexdigest()


def path_identity(name: str | Path | None) -> str | None:
    """Content hash of the file, or of the folder with a model or other files, that `name` is; None for other names.

    More than 1 GiB counts by the sizes of the files and samples of their bytes.

    Raises:
        SafetyNeuronsError: a file cannot be read, or the folder holds more than 10,000 files and folders.
    """
    path = Path(os.path.expanduser(name or ""))
    if not name or not os.path.exists(path):
        return None
    if not path.is_dir():
        return _content(path, path.stat().st_size <= _WHOLE)
    if any(os.path.isfile(path / config) for config in (MODEL_CONFIG, ADAPTER_CONFIG)):
        return folder_identity(path)
    files = _regular_files(path)
    with read_errors(path, _CORRECT):
        whole = sum(map(os.path.getsize, files)) <= _WHOLE
    return fingerprint([[str(inside.relative_to(path)), _content(inside, whole)] for inside in files])


def _regular_files(folder: Path) -> list[Path]:
    """The regular files in a folder and in those within it, sorted; links to folders are not followed.

    Raises:
        SafetyNeuronsError: there are more than 10,000 entries, or a folder cannot be read.
    """
    found: list[Path] = []
    entries = 0
    for above, folders, names in os.walk(folder, onerror=_raise):
        entries += len(folders) + len(names)
        if entries > _MOST_FILES:
            raise SafetyNeuronsError(
                f"The folder {folder}, which a setting names, holds more than {_MOST_FILES:,} files and folders: it is "
                "neither a model nor a folder of data. Correct that setting."
            )
        found += [Path(above, name) for name in names]
    return sorted(path for path in found if os.path.isfile(path))


def _raise(error: OSError) -> NoReturn:
    raise SafetyNeuronsError(
        f"The folder {error.filename} cannot be read ({error.strerror or error}). {_CORRECT}"
    ) from error


def _content(path: Path, whole: bool) -> str:
    """SHA-256 of a file, or of its size and samples of its bytes."""
    with open_regular(path, _CORRECT, MOST_BYTES_OF_WEIGHTS) as file:
        if whole:
            return hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size};".encode())
        for sample in _samples(file, size, 1 << 12):
            digest.update(sample)
        return digest.hexdigest()


def _samples(file: BinaryIO, size: int, length: int = 1 << 16) -> Iterator[bytes]:
    """The bytes at 32 places of a file."""
    for start in sorted({0, *(size * part // 32 for part in range(32))}):
        file.seek(start)
        yield file.read(length)
