"""Prompts from a user's own file.

The text of a prompt file taken apart into rows: .txt, .csv, .tsv, .jsonl and .json."""

import codecs
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


# In the order of preference: JailbreakBench has both `Goal` and `Behavior`, and the goal is the request.
WELL_KNOWN_COLUMNS = (
    "prompt",
    "goal",
    "instruction",
    "question",
    "text",
    "behavior",
    "behavior",
    "query",
    "request",
    "input",
)
COLUMN_OPTION = "--column (column= in Python)"


def read_prompts(path: str | Path, column: str | None = None) -> PromptSet:
    """Read a .txt (one prompt a line), .csv, .tsv, .jsonl or .json file in UTF-8.

    `column` names the column of the prompts; without it a well-known name is looked for, and the set's
    `column` says so. `id`, `category` and `split` are taken where the file has them; without a split each
    prompt gets a fixed one from its text. Spaces around prompts are stripped and duplicates dropped.

    Raises:
        SafetyNeuronsError: the file is missing, unreadable, empty, or has rows that are not prompts.
    """
    # Not Path.expanduser, which raises for an unknown user; this leaves such a path as it is.
    path = Path(os.path.expanduser(path))
    source = str(path)
    table = read_table(path, source)
    chosen, shown = _choose_column(table, column, source)
    return make_set(table, path.stem, source, chosen, shown, table.find("category"))


def read_table(path: Path, source: str) -> Table:
    """Take a prompt file apart. `source` is what messages call the file.

    Raises:
        SafetyNeuronsError: the file is missing, unreadable or empty, or is not of its kind.
    """
    parse = PARSERS.get(path.suffix.lower())
    _check_path(path)
    if parse is None:
        raise SafetyNeuronsError(
            f"{source} is not a kind of prompt file that can be read: its name has to end in "
            f"{', '.join(PARSERS)}. Rename or convert it."
        )
    text = _read_text(path, source)
    if not text.strip():
        raise SafetyNeuronsError(f"{source} is empty. Put prompts into it, or name another file.")
    table = parse(text, source)
    if not table.rows:
        raise SafetyNeuronsError(f"There are no prompts in {source}. Give at least one.")
    return table


def make_set(
    table: Table,
    name: str,
    source: str,
    column: str,
    shown: str = "",
    category: str | None = None,
    keep: tuple[str, str] | None = None,
) -> PromptSet:
    """Make a prompt set of a table.

    `column` holds the prompts (`shown` is what to say about it) and `category` their categories; of `keep`, a
    column and a value, only the rows that have the value are taken.

    Raises:
        SafetyNeuronsError: no row has the value of `keep`, or some are not prompts.
    """
    rows = table.rows
    if keep is not None:
        rows = tuple(row for row in rows if _text(row, keep[0]).strip().casefold() == keep[1])
        if not rows:
            raise SafetyNeuronsError(f"No row of {source} has {keep[1]!r} in its column {keep[0]!r}. Correct the file.")
    # Alpaca's convention: what the instruction is about stands in a second column.
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
    # os.path, because Path.exists raises for names that are too long for the disk.
    if os.path.isdir(path):
        raise SafetyNeuronsError(f"{path} is a folder. Name one file with prompts ({', '.join(PARSERS)}) in it.")
    if os.path.exists(path):
        return
    if not os.path.isdir(path.parent):
        raise SafetyNeuronsError(f"{path} does not exist: there is no folder {path.parent}. Check the path.")
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
            f"{source} is not UTF-8 text: the byte at offset {mark + error.start} does not fit. Save it as "
            f"UTF-8, for example with `iconv -f {encoding} -t UTF-8` if it is in {encoding}."
        ) from error
    if "\0" in text:
        offset = mark + content[mark:].index(b"\0")
        raise SafetyNeuronsError(
            f"{source} is not plain text: there is a NUL byte at offset {offset}. If it is UTF-16, convert "
            "it with `iconv -f UTF-16 -t UTF-8`; otherwise remove the NUL bytes."
        )
    return text


def _choose_column(table: Table, wished: str | None, source: str) -> tuple[str, str]:
    """The column of the prompts, and what to say about it."""
    if not table.columns:
        if wished is not None:
            raise SafetyNeuronsError(
                f"{source} has no columns, so there is no column {wished!r}. Leave out {COLUMN_OPTION}."
            )
        return PLAIN, ""
    if wished is not None:
        found = table.find(wished)
        if found is None:
            raise SafetyNeuronsError(_missing_column(table, wished, source))
        return found, found
    found = table.find(*WELL_KNOWN_COLUMNS)
    if found is None:
        raise SafetyNeuronsError(_missing_column(table, None, source))
    return found, f"{found} (guessed)"


def _missing_column(table: Table, wished: str | None, source: str) -> str:
    what = f"has no column {wished!r}" if wished is not None else "has no column with a well-known name"
    hint = ""
    if len(table.columns) == 1 and ";" in table.columns[0]:
        hint = " It seems to be separated by semicolons: save it with commas, or with tabs as .tsv."
    return (
        f"{source} {what}. Its columns are {', '.join(table.columns)}; say which one holds the prompts with "
        f"{COLUMN_OPTION}. The first line of a table has to be its header.{hint}"
    )


def _text(row: Row, column: str | None) -> str:
    """A row's id, category or the like as a string; nothing where the row does not have it."""
    value: Any = None if column is None else row.values.get(column)
    return "" if value is None else str(value)


def _prompt_text(row: Row, column: str, addition: str | None, unit: str, source: str) -> str:
    value = row.values.get(column, "")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SafetyNeuronsError(
            f"The value of {column!r} in {unit} {row.place} of {source} is not a string. Write it in "
            f"quotation marks, or choose another column with {COLUMN_OPTION}."
        )
    added = _text(row, addition).strip()
    return f"{value.strip()}\n\n{added}" if added and value.strip() else value
