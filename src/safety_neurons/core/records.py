"""JSON that comes back from a disk: typed files, and caches of typed lines by key.

What is read may be damaged, or come from somebody else: it is validated before anything uses it.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import MOST_JSON_BYTES, append_bytes, atomic_path, exists, read_bytes, refuse_constant

# The largest file of lines that is read.
MOST_LINES_BYTES = 8 << 30


class Record(BaseModel):
    """A JSON object of known fields and types; nothing is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class Line(Record):
    """A line of a cache, found by its key."""

    key: str


R = TypeVar("R", bound=BaseModel)
L = TypeVar("L", bound=Line)


def read_record(path: Path, kind: type[R], advice: str) -> R:
    """Read a JSON file of this kind.

    Args:
        advice: what the user can do about a file that is not; ends the error message.

    Raises:
        SafetyNeuronsError: as `open_regular`, or the file is not JSON, or a field is missing, unknown or wrong.
    """
    try:
        return parsed(read_bytes(path, advice, MOST_JSON_BYTES), kind)
    except ValueError as error:
        raise SafetyNeuronsError(f"{path} is damaged: {_problem(error)}. {advice}") from error


def parsed(text: bytes, kind: type[R]) -> R:
    """JSON text as this kind.

    Raises:
        ValueError: it is not JSON, it holds NaN or infinity, or a field is missing, unknown or wrong.
    """
    if any(word in text for word in (b"NaN", b"Infinity")):
        json.loads(text, parse_constant=refuse_constant)
    try:
        return kind.model_validate_json(text)
    except SafetyNeuronsError as error:
        # A dataclass that checks its own values.
        raise ValueError(str(error)) from error
    except ValidationError as error:
        if error.errors()[0]["type"] != "json_invalid":
            raise
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise error from None
        # pydantic reads no lone surrogates, which a tokenizer can produce. Outside of JSON, strict would refuse lists.
        return kind.model_validate(value, strict=False)


def _problem(error: ValueError) -> str:
    return first_problem(error) if isinstance(error, ValidationError) else str(error)


def first_problem(error: ValidationError) -> str:
    """What is wrong with which field first, and how many more problems there are."""
    first, *others = error.errors(include_url=False, include_input=False, include_context=False)
    place = ".".join(str(part)[:80] for part in first["loc"])
    message = first["msg"][:1].lower() + first["msg"][1:]
    more = f" (and {len(others)} more problems)" if others else ""
    return (f"{place}: {message}" if place else message) + more


@dataclass
class JsonlCache(Generic[L]):
    """An append-only cache of lines by key, so that no result is computed twice.

    Each line is written as soon as it is added, to a file that its owner alone can read: answers are in it. With the
    path None nothing is written.
    """

    path: Path | None
    kind: type[L]
    entries: dict[str, L] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None, kind: type[L]) -> Self:
        """Load the lines of an earlier process, if there are any; errors and warnings as `read_lines`."""
        lines = [] if path is None else read_lines(path, kind)
        return cls(path, kind, {line.key: line for line in lines})

    def add(self, line: L) -> L:
        """Append a line and return it."""
        if self.path is not None:
            append_line(self.path, line)
        self.entries[line.key] = line
        return line


def append_line(path: Path, line: Record) -> None:
    """Append a line. If a kill cuts it off, `read_lines` drops it; errors as `append_bytes`."""
    # ASCII, in which a lone surrogate of a tokenizer has a form.
    append_bytes(path, json.dumps(line.model_dump(), allow_nan=False).encode() + b"\n")


def read_lines(path: Path, kind: type[R]) -> list[R]:
    """The lines of a file of `append_line`; an incomplete last line is removed from the file.

    Damaged lines are moved to a file next to it, and a warning names the first: what they held is computed again.

    Raises:
        SafetyNeuronsError: the file cannot be read or is too large.
    """
    if not exists(path):
        return []
    advice = "Move it away; what it held is computed again."
    content = read_bytes(path, advice, MOST_LINES_BYTES)
    whole = content[: content.rfind(b"\n") + 1]
    lines: list[R] = []
    good: list[bytes] = []
    damaged: list[bytes] = []
    first = ""
    for number, text in enumerate(whole.split(b"\n")[:-1], start=1):
        if not text.strip():
            continue
        try:
            lines.append(parsed(text, kind))
            good.append(text)
        except ValueError as error:
            first = first or f"line {number}: {_problem(error)}"
            damaged.append(text)
    if damaged:
        _set_aside(path, damaged)
        warnings.warn(
            f"{len(damaged):,} of the {len(good) + len(damaged):,} lines of {path} are damaged ({first}). They were "
            f"moved to {_aside(path)}, and what they held is computed again.",
            stacklevel=2,
        )
    if damaged or len(whole) < len(content):
        _rewrite(path, good)
    return lines


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def _set_aside(path: Path, damaged: Sequence[bytes]) -> None:
    append_bytes(_aside(path), b"".join(line + b"\n" for line in damaged))


def _rewrite(path: Path, lines: Sequence[bytes]) -> None:
    with atomic_path(path, private=True) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in lines))
