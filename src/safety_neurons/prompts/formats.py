"""The text of a prompt file taken apart into rows: .txt, .csv, .tsv, .jsonl and .json."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from safety_neurons.errors import SafetyNeuronsError

PLAIN = ""
"""The key of a row's text where the file has no columns."""


@dataclass(frozen=True)
class Row:
    """One prompt's values by column. `place` is a line number, or a position in a JSON array, from 1."""

    place: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A file taken apart. `columns` is empty where it holds texts and nothing else."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    unit: str = "line"

    def find(self, *wished: str) -> str | None:
        """The first of these columns that there is, in this or, failing that, in another case."""
        for name in wished:
            if name in self.columns:
                return name
            for column in self.columns:
                if column.casefold() == name.strip().casefold():
                    return column
        return None


def parse_text(text: str, source: str) -> Table:
    """One prompt a line; blank lines are skipped."""
    return Table((), tuple(Row(place, {PLAIN: line}) for place, line in _lines(text) if line.strip()))


def parse_csv(text: str, source: str) -> Table:
    """Comma-separated values with a header."""
    return _parse_delimited(text, source, ",")


def parse_tsv(text: str, source: str) -> Table:
    """Tab-separated values with a header."""
    return _parse_delimited(text, source, "\t")


def parse_json_lines(text: str, source: str) -> Table:
    """One JSON object a line; blank lines are skipped.

    Raises:
        SafetyNeuronsError: a line is not JSON, or is not an object.
    """
    rows = []
    for place, line in _lines(text):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            array = text.lstrip().startswith("[")
            hint = " The file looks like one JSON array: name it .json." if array else ""
            raise SafetyNeuronsError(
                f"Line {place} of {source} is not valid JSON ({_reason(error)}). Each line has to be one "
                f'object, such as {{"prompt": "..."}}.{hint}'
            ) from error
        if not isinstance(value, dict):
            raise SafetyNeuronsError(
                f"Line {place} of {source} is {_kind(value)}, not an object. Write each line as "
                '{"prompt": "..."}, or name the file .txt if it has one prompt a line.'
            )
        rows.append(Row(place, value))
    return Table(_columns(rows), tuple(rows))


def parse_json(text: str, source: str) -> Table:
    """A JSON array of objects or of strings.

    Raises:
        SafetyNeuronsError: it is not JSON, not an array, or the items are of other or of mixed kinds.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        hint = " If each line is an object of its own, name the file .jsonl." if lines else ""
        raise SafetyNeuronsError(
            f"{source} is not valid JSON ({_reason(error)}). Correct it there and run again.{hint}"
        ) from error
    if not isinstance(values, list):
        raise SafetyNeuronsError(
            f"{source} holds {_kind(values)}; it has to be an array of objects or of strings, such as "
            '[{"prompt": "..."}] or ["..."].'
        )
    if values and all(isinstance(value, str) for value in values):
        return Table((), tuple(Row(place, {PLAIN: value}) for place, value in enumerate(values, 1)), "item")
    for place, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise SafetyNeuronsError(
                f"Item {place} of {source} is {_kind(value)}. The array has to hold objects only, such as "
                '{"prompt": "..."}, or strings only.'
            )
    rows = tuple(Row(place, value) for place, value in enumerate(values, start=1))
    return Table(_columns(rows), rows, "item")


PARSERS: dict[str, Callable[[str, str], Table]] = {
    ".txt": parse_text,
    ".csv": parse_csv,
    ".tsv": parse_tsv,
    ".jsonl": parse_json_lines,
    ".json": parse_json,
}
"""How each kind of file is taken apart: functions of the text and of the name to use in messages."""


def _lines(text: str) -> list[tuple[int, str]]:
    # Not str.splitlines: that also cuts at U+2028 and others, which may stand inside a prompt.
    return list(enumerate(io.StringIO(text, newline=None).read().split("\n"), start=1))


def _parse_delimited(text: str, source: str, delimiter: str) -> Table:
    """Rows of a table with a header; empty lines are skipped.

    Raises:
        SafetyNeuronsError: wrong quoting, a field over the csv module's limit, a column named twice, or a row
            with more values than the header has names.
    """
    import csv

    # Strict, because otherwise a quotation mark that is never closed silently swallows the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[Row] = []
    start = 1
    try:
        for values in reader:
            # A row's number is that of its first line; quoted fields may run over several.
            place, start = start, reader.line_num + 1
            if not values:
                continue
            if not header:
                header = _header(values, source)
                continue
            if any(value.strip() for value in values[len(header) :]):
                raise SafetyNeuronsError(
                    f"Line {place} of {source} has {len(values)} values for {len(header)} columns. Put "
                    "prompts that contain the separator in quotation marks."
                )
            # A column without a name is usually an index that pandas wrote.
            rows.append(Row(place, {name: value for name, value in zip(header, values, strict=False) if name}))
    except csv.Error as error:
        raise SafetyNeuronsError(
            f"{source} cannot be read as a table near line {reader.line_num}, in the row starting in line "
            f"{start} ({error}). Usual causes: a quotation mark that is never closed, one inside a field "
            f"that is not doubled, or a prompt of more than {csv.field_size_limit()} characters."
        ) from error
    return Table(tuple(name for name in header if name), tuple(rows))


def _header(values: list[str], source: str) -> list[str]:
    header = [value.strip() for value in values]
    if not any(header):
        raise SafetyNeuronsError(
            f"The header of {source} has no names. Write them into its first line, such as `prompt`."
        )
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise SafetyNeuronsError(
            f"The header of {source} names the column {twice[0]!r} more than once. Rename all but one."
        )
    return header


def _columns(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for name in row.values))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
