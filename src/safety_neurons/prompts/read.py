"""Prompts from files: .txt, .csv, .tsv, .jsonl and .json."""

import errno
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import did_you_mean
from safety_neurons.prompts.conversations import (
    ROLES,
    NotAConversation,
    looks_like_conversation,
    messages_of,
    request_of,
)
from safety_neurons.prompts.decode import read_text
from safety_neurons.prompts.delimited import is_table, parse_delimited
from safety_neurons.prompts.json_forms import looks_like_json, parse_json, parse_json_lines
from safety_neurons.prompts.prompt_set import Entry, PromptSet, assemble
from safety_neurons.prompts.table import (
    CONVERSATION_COLUMNS,
    NESTED_COLUMNS,
    PLAIN,
    WELL_KNOWN_COLUMNS,
    PromptRow,
    PromptTable,
    counted,
    kind_of,
    texts_of,
)

ENDINGS = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".ndjson", ".tab")
_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers", ".parquet", ".arrow", ".feather", ".pkl")


REQUEST_COLUMNS = (*WELL_KNOWN_COLUMNS[:4], *CONVERSATION_COLUMNS, *WELL_KNOWN_COLUMNS[4:], *NESTED_COLUMNS)
"""Columns of prompts by preference. Conversations come before `text`, which may have the marks of a chat template."""
_SHOWN, _SHOWN_COLUMNS = 60, 12


def parse(text: str, ending: str, source: str) -> PromptTable:
    """Parse a text as its file's ending says, or as what it plainly is instead.

    Raises:
        SafetyNeuronsError: the text is malformed.
    """
    if ending in (".jsonl", ".ndjson"):
        return parse_json_lines(text, source)
    if ending == ".json":
        return parse_json(text, source)
    if looks_like_json(text):
        table = parse_json_lines(text, source)
        return _noted(table, f"read as JSON, though the name ends in {ending}")
    if ending == ".txt":
        if not is_table(text):
            return _parse_text(text)
        return _noted(parse_delimited(text, source, "\t"), "read as a table, as the first line is a header")
    return parse_delimited(text, source, "," if ending == ".csv" else "\t")


def _noted(table: PromptTable, note: str) -> PromptTable:
    return replace(table, notes=(note, *table.notes))


def _parse_text(text: str) -> PromptTable:
    """One prompt per line; blank lines are skipped."""
    # str.splitlines would also split at U+2028 and others, which a prompt may contain.
    lines = enumerate(io.StringIO(text, newline=None).read().split("\n"), start=1)
    found = [(place, line) for place, line in lines if line.strip()]
    quoted = sum(len(line.strip()) > 1 and line.strip()[0] == line.strip()[-1] == '"' for _, line in found)
    notes = [f"{counted(quoted, 'line')} in quotation marks, which are part of the prompts"] if quoted else []
    return texts_of(found, "line", *notes)


def read_prompts(path: str | Path, column: str | None = None) -> PromptSet:
    """Read a .txt (one prompt per line), .csv, .tsv, .jsonl or .json file in UTF-8 or, with its mark, UTF-16.

    Commas, semicolons, tabs and vertical bars are told apart whatever the ending. `column` names the column of the
    prompts (default: the first well-known name; `meta.prompt` is the one inside of `meta`). Of a conversation
    (`messages`, `conversations`) the user's first turn is taken. The columns `id`, `category` and `split` are used if
    present; without splits each prompt gets a fixed one from its text. Surrounding spaces are stripped and duplicates
    dropped. What was found out or left out is in the set's `column` and `notes`.

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
    ending = path.suffix.lower()
    check_path(path)
    if ending not in ENDINGS:
        advice = "Export it as CSV in UTF-8." if ending in _SPREADSHEETS else "Rename or convert it."
        raise SafetyNeuronsError(
            f"{source} is not a supported prompt file: its name must end in {', '.join(ENDINGS)}. {advice}"
        )
    text, remarks = read_text(path, source)
    if not text.strip():
        raise SafetyNeuronsError(f"{source} is empty. Fill it, or use another file.")
    table = parse(text, ending, source)
    if not table.rows:
        raise SafetyNeuronsError(f"There are no prompts in {source}. Give at least one.")
    return replace(table, notes=(*remarks, *table.notes))


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
    identity, split, role = (table.find(*names) for names in (("id", "custom_id"), ("split",), ("role", "from")))
    for row in rows:
        if ROLES.get(_text(row, role).strip().casefold(), "user") != "user":
            raise SafetyNeuronsError(
                f"The {table.unit} {row.place} of {source} is a message of the {_text(row, role)}, not a prompt. "
                f"Delete the rows whose {role!r} is not the user's, or remove this column if all are prompts."
            )
    texts = requests_of(rows, column, table.unit, source)
    entries = [
        Entry(
            place=row.place,
            text=_joined(text, _text(row, addition)),
            id=_text(row, identity),
            category=_text(row, category),
            split=_text(row, split),
        )
        for row, text in zip(rows, texts.texts, strict=True)
    ]
    if texts.turns:
        shown = f"{shown}, the user's first turn" if shown else "the user's first turn"
    return assemble(name, entries, source, table.unit, shown, (*table.notes, *texts.notes))


def check_path(path: Path) -> None:
    """Raise SafetyNeuronsError if a prompt file does not exist, is a folder, or cannot be read."""
    if os.path.isdir(path):
        raise SafetyNeuronsError(f"{path} is a folder. Name a file of prompts ({', '.join(ENDINGS)}) in it.")
    try:
        os.stat(path)
        return
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.EIO):
            raise SafetyNeuronsError(f"{path} cannot be read ({error.strerror}). Name another file.") from error
    except ValueError:
        # No file has a name with a NUL byte.
        pass
    if os.path.islink(path):
        raise SafetyNeuronsError(f"{path} is a link to {os.readlink(path)}, which does not exist. Correct the link.")
    if not os.path.isdir(path.parent):
        raise SafetyNeuronsError(f"{path} does not exist, as there is no folder {path.parent}. Check the path.")
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        names = []
    hint = did_you_mean(path.name, names) or "Check the path."
    raise SafetyNeuronsError(f"{path} does not exist. {hint.rstrip()}")


def _choose_column(table: PromptTable, name: str | None, source: str) -> tuple[str, str]:
    """The column of the prompts, and its description for `PromptSet.column`."""
    if not table.columns:
        if name is not None:
            raise SafetyNeuronsError(f"{source} has no columns, so it has no column {name!r}. Omit `column`.")
        return PLAIN, ""
    found = table.find(*REQUEST_COLUMNS if name is None else (name,))
    if found is None:
        what = "has no column with a well-known name" if name is None else f"has no column {name!r}"
        raise SafetyNeuronsError(
            f"{source} {what}. Its columns are {listed(table.columns)}. Rename the one with the prompts to `prompt`, "
            f"or name it (column) if all your files have it. {_hint(table)}"
        )
    return found, found if name is not None else f"{found} (guessed)"


def _hint(table: PromptTable) -> str:
    nested = [column for column in table.columns if column.rpartition(".")[2].casefold() in REQUEST_COLUMNS]
    if nested:
        inside = ", which is inside of an object" if "." in nested[0] else ""
        return f"It may be {nested[0]!r}{inside}."
    if not any(" " in name or not name[:1].isalpha() for name in table.columns):
        return "Well-known names are prompt, goal, instruction, question and messages."
    return (
        "The first line of a table must be its header: if it is a prompt, put the names of the columns above it, such "
        "as `prompt`, separated as the values are."
    )


def listed(columns: Sequence[str]) -> str:
    """Columns for a message, which stays readable if they are a row of values instead of names."""
    shown = [name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..." for name in columns[:_SHOWN_COLUMNS]]
    return ", ".join(shown) + (f" and {len(columns) - len(shown)} more" if len(columns) > len(shown) else "") or "none"


@dataclass(frozen=True)
class Requests:
    """The texts of a column; `turns` says whether they come from conversations, `notes` what of these is left out."""

    texts: tuple[str, ...]
    turns: bool
    notes: tuple[str, ...]


def requests_of(rows: Sequence[PromptRow], column: str, unit: str, source: str) -> Requests:
    """The prompts in a column: texts as they are, and the user's first turn of conversations.

    A missing text is empty.

    Raises:
        SafetyNeuronsError: a value is neither a text nor a conversation.
    """
    texts: list[str] = []
    taken, with_system, with_more = 0, 0, 0
    for row in rows:
        value = row.values.get(column)
        # pandas writes NaN for what is missing.
        if value is None or value != value:
            texts.append("")
            continue
        if isinstance(value, str) and not looks_like_conversation(value):
            texts.append(value)
            continue
        taken += 1
        if isinstance(value, list) and _are_turns(value, column):
            texts.append(value[0])
            with_more += len(value) > 1
            continue
        if not looks_like_conversation(value):
            raise SafetyNeuronsError(
                f"The value of {column!r} in {unit} {row.place} of {source} is not a string: it is {kind_of(value)}. "
                "Put it in quotation marks, or choose another column."
            )
        try:
            request = request_of(messages_of(value))
        except NotAConversation as error:
            raise SafetyNeuronsError(
                f"The conversation in {column!r} in {unit} {row.place} of {source} {error}. Correct it, or write the "
                'request as a text or as [{"role": "user", "content": "..."}].'
            ) from error
        texts.append(request.text)
        with_system += request.system
        with_more += request.later_turns
    notes = []
    if with_system:
        notes.append(f"{counted(with_system, 'system message')} left out (a system prompt is set with `system`)")
    if with_more:
        notes.append(f"the later turns of {counted(with_more, 'conversation')} left out")
    return Requests(tuple(texts), taken > 0, tuple(notes))


def _are_turns(value: list[Any], column: str) -> bool:
    """Whether a list holds what the user says, turn by turn, as MT-Bench's `turns` do."""
    texts = bool(value) and all(isinstance(one, str) for one in value)
    return texts and (len(value) == 1 or column.casefold() == "turns")


def _text(row: PromptRow, column: str | None) -> str:
    """A row's value as a string; empty if it has none."""
    value: Any = None if column is None else row.values.get(column)
    return "" if value is None else str(value)


def _joined(text: str, addition: str) -> str:
    return f"{text.strip()}\n\n{addition.strip()}" if addition.strip() and text.strip() else text
