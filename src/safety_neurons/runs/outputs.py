"""The folders of evaluations and comparisons: nothing is written into one that holds files of somebody else."""

import json
from pathlib import Path

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import MOST_BYTES_OF_WEIGHTS, open_regular, read_json
from safety_neurons.core.locks import NAME as LOCK
from safety_neurons.core.records import Line, parsed
from safety_neurons.core.temporary import is_temporary
from safety_neurons.engines.engine import CachedAnswer
from safety_neurons.runs.folder import FOLDERS, RunFolder

# The longest first line of a cache that is read to know it.
_MOST_LINE_BYTES = 1 << 26


def check_output(folder: Path, file: str, schema: int, what: str) -> None:
    """Check that a folder is new, or holds what is written again: a `file` of this schema, or what a kill left of it.

    Args:
        what: what the folder is for, as in "evaluation".

    Raises:
        SafetyNeuronsError: it holds something else, or as `RunFolder.check`.
    """
    names = RunFolder(folder).check()
    if file in names:
        own = _has_schema(folder / file, schema)
    else:
        own = "run.json" in names or all(_is_own(folder / name) for name in names)
    if not own:
        raise SafetyNeuronsError(
            f"{folder} is not empty and holds no {what}. Choose another folder, so that nothing of yours is lost."
        )


def _has_schema(file: Path, schema: int) -> bool:
    try:
        found = read_json(file)
    except SafetyNeuronsError:
        return False
    return isinstance(found, dict) and found.get("schema") == schema


def _is_own(path: Path) -> bool:
    """Whether this is what the work keeps before it is finished."""
    if path.name == LOCK or is_temporary(path.name) or FOLDERS.fullmatch(path.name):
        return True
    if path.name == "scores":
        return path.is_dir() and all(one.suffix == ".safetensors" or is_temporary(one.name) for one in path.iterdir())
    # Lines that were set aside stand next to the file that they come from.
    return path.name.endswith(".jsonl.damaged") or (path.suffix == ".jsonl" and _is_cache(path))


def _is_cache(path: Path) -> bool:
    with open_regular(path, limit=MOST_BYTES_OF_WEIGHTS) as file:
        first = file.readline(_MOST_LINE_BYTES)
    if not first.endswith(b"\n"):
        # A kill cut it off.
        return first.startswith(b'{"key": "') or not first
    try:
        if path.name == "responses.jsonl":
            parsed(first, CachedAnswer)
        else:
            Line.model_validate({"key": json.loads(first)["key"]})
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return True
