"""Prompts from a user's own file."""

import codecs
import os
from pathlib import Path
from typing import Any

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.plugins import did_you_mean
from safety_neurons.prompts.formats import PARSERS, PLAIN, Row, Table
from safety_neurons.prompts.prompt_set import Entry, PromptSet, assemble

# In the order of preference: JailbreakBench has both `Goal` and `Behavior`, and the goal is the request.
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
