"""Prompts from files: .txt, .csv, .tsv, .jsonl and .json."""

import codecs
import functools
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import did_you_mean
from safety_neurons.prompts.prompt_set import Entry, PromptSet, assemble

PLAIN = ""
"""The key of a row's text if the file has no columns."""
# By preference: JailbreakBench has both `Goal` and `Behavior`, and the goal is the request.
WELL_KNOWN_COLUMNS = (
    "prompt",
    "goal",
    "instruction",
    "question",
    "text",
    "behavior",
    "behaviour",
    "query",
    "request",
    "input",
)


@dataclass(frozen=True)
class PromptRow:
    """One prompt's values by column. `place` is its line or its position in a JSON array, from 1."""

    place: int
    values: dict[str, Any]


@dataclass(frozen=True)
class PromptTable:
    """A parsed file. `columns` is empty if it holds texts only; `unit` is what a place is called in messages."""

    columns: tuple[str, ...]
    rows: tuple[PromptRow, ...]
    unit: str = "line"

    def find(self, *names: str) -> str | None:
        """The first of these columns that exists, if necessary ignoring case; or None."""
        for name in names:
            if name in self.columns:
                return name
            for column in self.columns:
                if column.casefold() == name.strip().casefold():
                    return column
        return None


def parse_text(text: str, source: str) -> PromptTable:
    """One prompt per line; blank lines are skipped."""
    return PromptTable((), tuple(PromptRow(place, {PLAIN: line}) for place, line in _lines(text) if line.strip()))


def parse_json_lines(text: str, source: str) -> PromptTable:
    """One JSON object per line; blank lines are skipped.

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
                f"Line {place} of {source} is not valid JSON ({_reason(error)}). Write one object per line, "
                f'such as {{"prompt": "..."}}.{hint}'
            ) from error
        if not isinstance(value, dict):
            raise SafetyNeuronsError(
                f"Line {place} of {source} is {_kind(value)}, not an object. Write each line as "
                '{"prompt": "..."}, or name the file .txt if it has one prompt per line.'
            )
        rows.append(PromptRow(place, value))
    return PromptTable(_columns(rows), tuple(rows))


def parse_json(text: str, source: str) -> PromptTable:
    """A JSON array of objects or of strings.

    Raises:
        SafetyNeuronsError: it is not JSON, not an array, or its items are of other or mixed types.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        hint = " If each line is an object, name the file .jsonl." if lines else ""
        raise SafetyNeuronsError(
            f"{source} is not valid JSON ({_reason(error)}). Correct it and run again.{hint}"
        ) from error
    if not isinstance(values, list):
        raise SafetyNeuronsError(
            f"{source} holds {_kind(values)}. It must hold an array of objects or of strings, such as "
            '[{"prompt": "..."}] or ["..."].'
        )
    if values and all(isinstance(value, str) for value in values):
        return PromptTable((), tuple(PromptRow(place, {PLAIN: value}) for place, value in enumerate(values, 1)), "item")
    for place, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise SafetyNeuronsError(
                f"Item {place} of {source} is {_kind(value)}. The array must hold only objects, such as "
                '{"prompt": "..."}, or only strings.'
            )
    rows = tuple(PromptRow(place, value) for place, value in enumerate(values, start=1))
    return PromptTable(_columns(rows), rows, "item")


def _parse_delimited(text: str, source: str, delimiter: str) -> PromptTable:
    """Delimited values with a header; empty lines are skipped."""
    # Imported late, as bundled sets do not need it.
    import csv

    # Strict: otherwise an unclosed quotation mark silently swallows the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[PromptRow] = []
    start = 1
    try:
        for values in reader:
            # The place of a row is its first line; quoted fields may span several.
            place, start = start, reader.line_num + 1
            if not values:
                continue
            if not header:
                header = _header(values, source)
                continue
            if any(value.strip() for value in values[len(header) :]):
                raise SafetyNeuronsError(
                    f"Line {place} of {source} has {len(values)} values for {len(header)} columns. Quote "
                    "prompts that contain the separator."
                )
            # A column without a name is usually a pandas index.
            rows.append(PromptRow(place, {name: value for name, value in zip(header, values, strict=False) if name}))
    except csv.Error as error:
        raise SafetyNeuronsError(
            f"{source} cannot be read as a table near line {reader.line_num}, in the row starting in line "
            f"{start} ({error}). Usual causes: an unclosed quotation mark, one inside a field that is not doubled, or "
            f"a prompt of more than {csv.field_size_limit()} characters."
        ) from error
    return PromptTable(tuple(name for name in header if name), tuple(rows))


def _header(values: list[str], source: str) -> list[str]:
    header = [value.strip() for value in values]
    if not any(header):
        raise SafetyNeuronsError(
            f"The header of {source} has no names. Put column names such as `prompt` into the first line."
        )
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise SafetyNeuronsError(
            f"The header of {source} names the column {twice[0]!r} more than once. Rename all but one."
        )
    return header


def _lines(text: str) -> list[tuple[int, str]]:
    # str.splitlines would also split at U+2028 and others, which a prompt may contain.
    return list(enumerate(io.StringIO(text, newline=None).read().split("\n"), start=1))


def _columns(rows: Sequence[PromptRow]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for name in row.values))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


PARSERS: dict[str, Callable[[str, str], PromptTable]] = {
    ".txt": parse_text,
    ".csv": functools.partial(_parse_delimited, delimiter=","),
    ".tsv": functools.partial(_parse_delimited, delimiter="\t"),
    ".jsonl": parse_json_lines,
    ".json": parse_json,
}
"""Parsers by file ending: functions of the text and of the file's name in messages."""


def read_prompts(path: str | Path, column: str | None = None) -> PromptSet:
    """Read a .txt (one prompt per line), .csv, .tsv, .jsonl or .json file in UTF-8.

    `column` names the column of the prompts (default: the first well-known name). The columns `id`, `category` and
    `split` are used if present; without splits each prompt gets a fixed one from its text. Surrounding spaces are
    stripped and duplicates dropped.

    Raises:
        SafetyNeuronsError: the file is missing, unreadable or empty, or has rows that are not prompts.
    """
    # Path.expanduser would raise for an unknown user.
    path = Path(os.path.expanduser(path))
    source = str(path)
    table = read_table(path, source)
    chosen, shown = _choose_column(table, column, source)
    return make_set(table, path.stem, source, chosen, shown, table.find("category"))


def read_table(path: Path, source: str) -> PromptTable:
    """Parse a prompt file, which messages call `source`.

    Raises:
        SafetyNeuronsError: the file is missing, unreadable, empty or malformed.
    """
    parse = PARSERS.get(path.suffix.lower())
    _check_path(path)
    if parse is None:
        raise SafetyNeuronsError(
            f"{source} is not a supported prompt file: its name must end in {', '.join(PARSERS)}. Rename or convert it."
        )
    text = _read_text(path, source)
    if not text.strip():
        raise SafetyNeuronsError(f"{source} is empty. Put prompts into it, or use another file.")
    table = parse(text, source)
    if not table.rows:
        raise SafetyNeuronsError(f"There are no prompts in {source}. Give at least one.")
    return table


def make_set(
    table: PromptTable,
    name: str,
    source: str,
    column: str,
    shown: str = "",
    category: str | None = None,
    keep: tuple[str, str] | None = None,
) -> PromptSet:
    """Make a prompt set from a table.

    Args:
        column: the column of the prompts; `shown` describes it in `PromptSet.column`.
        category: the column of the categories.
        keep: a column and a value; only rows with this value are used.

    Raises:
        SafetyNeuronsError: no row has the value of `keep`, or some rows are not prompts.
    """
    rows = table.rows
    if keep is not None:
        rows = tuple(row for row in rows if _text(row, keep[0]).strip().casefold() == keep[1])
        if not rows:
            raise SafetyNeuronsError(f"No row of {source} has {keep[1]!r} in its column {keep[0]!r}. Correct the file.")
    # Alpaca's convention: the text that the instruction is about is in a second column.
    addition = table.find("input") if column.casefold() == "instruction" else None
    identity, split = table.find("id"), table.find("split")
    entries = [
        Entry(
            place=row.place,
            text=_prompt_text(row, column, addition, table.unit, source),
            id=_text(row, identity),
            category=_text(row, category),
            split=_text(row, split),
        )
        for row in rows
    ]
    return assemble(name, entries, source, table.unit, shown)


def _check_path(path: Path) -> None:
    # Path.exists would raise for names that are too long for the disk.
    if os.path.isdir(path):
        raise SafetyNeuronsError(f"{path} is a folder. Name a file of prompts ({', '.join(PARSERS)}) in it.")
    if os.path.exists(path):
        return
    if not os.path.isdir(path.parent):
        raise SafetyNeuronsError(f"{path} does not exist, as there is no folder {path.parent}. Check the path.")
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        names = []
    hint = did_you_mean(path.name, names) or "Check the path."
    raise SafetyNeuronsError(f"{path} does not exist. {hint.rstrip()}")


def _read_text(path: Path, source: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SafetyNeuronsError(f"{source} cannot be read ({error.strerror}). Check its permissions.") from error
    mark = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    try:
        text = content[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "UTF-16" if wide else "WINDOWS-1252"
        raise SafetyNeuronsError(
            f"{source} is not UTF-8 text: invalid byte at offset {mark + error.start}. Save it as UTF-8, "
            f"for example with `iconv -f {encoding} -t UTF-8` if it is in {encoding}."
        ) from error
    if "\0" in text:
        offset = mark + content[mark:].index(b"\0")
        raise SafetyNeuronsError(
            f"{source} is not plain text: there is a NUL byte at offset {offset}. If it is UTF-16, convert "
            "it with `iconv -f UTF-16 -t UTF-8`; otherwise remove the NUL bytes."
        )
    return text


def _choose_column(table: PromptTable, name: str | None, source: str) -> tuple[str, str]:
    """The column of the prompts, and its description for `PromptSet.column`."""
    if not table.columns:
        if name is not None:
            raise SafetyNeuronsError(f"{source} has no columns, so it has no column {name!r}. Omit `column`.")
        return PLAIN, ""
    found = table.find(*WELL_KNOWN_COLUMNS if name is None else (name,))
    if found is None:
        what = "has no column with a well-known name" if name is None else f"has no column {name!r}"
        hint = ""
        if len(table.columns) == 1 and ";" in table.columns[0]:
            hint = " It seems to be separated by semicolons: save it with commas, or with tabs as .tsv."
        raise SafetyNeuronsError(
            f"{source} {what}. Its columns are {', '.join(table.columns)}; name the one with the prompts (column). "
            f"The first line of a table must be its header.{hint}"
        )
    return found, found if name is not None else f"{found} (guessed)"


def _text(row: PromptRow, column: str | None) -> str:
    """A row's value as a string; empty if it has none."""
    value: Any = None if column is None else row.values.get(column)
    return "" if value is None else str(value)


def _prompt_text(row: PromptRow, column: str, addition: str | None, unit: str, source: str) -> str:
    value = row.values.get(column, "")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SafetyNeuronsError(
            f"The value of {column!r} in {unit} {row.place} of {source} is not a string. Put it in "
            "quotation marks, or choose another column."
        )
    added = _text(row, addition).strip()
    return f"{value.strip()}\n\n{added}" if added and value.strip() else value
