"""Prompts as JSON: one object per line, one array, or the forms in which pandas and dataset servers write tables."""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.prompts.conversations import looks_like_conversation
from safety_neurons.prompts.table import (
    CONVERSATION_COLUMNS,
    HEADER_NAMES,
    NESTING,
    WELL_KNOWN_COLUMNS,
    PromptTable,
    counted,
    kind_of,
    table_of,
    texts_of,
)

_EXAMPLE = '{"prompt": "..."}'
_ERRORS = (ValueError, RecursionError)
_SPACE = re.compile(r"\s*")


def parse_json(text: str, source: str) -> PromptTable:
    """A JSON array of objects or of strings, one of the forms of a table, or one object per line.

    Raises:
        SafetyNeuronsError: it is not JSON, or has another form.
    """
    try:
        value = json.loads(text)
    except _ERRORS as error:
        values = _sequence(text)
        if values is not None:
            return _lines(values, source, "one JSON object per line")
        raise SafetyNeuronsError(f"{source} is not valid JSON ({_reason(error)}). Correct it and run again.") from error
    return _whole(value, source)


def parse_json_lines(text: str, source: str) -> PromptTable:
    """One JSON object per line, with blank lines between; or else what `parse_json` reads.

    Raises:
        SafetyNeuronsError: a line is not JSON, or is not an object.
    """
    values: list[tuple[int, Any]] = []
    for place, line in enumerate(io.StringIO(text, newline=None).read().split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append((place, json.loads(line)))
        except _ERRORS as error:
            try:
                return _whole(json.loads(text), source, "one JSON text, not one object per line")
            except _ERRORS:
                pass
            several = _sequence(text)
            if several is not None:
                return _lines(several, source)
            raise SafetyNeuronsError(
                f"Line {place} of {source} is not valid JSON ({_reason(error)}). Write one object per line, "
                f"such as {_EXAMPLE}."
            ) from error
    alone = values[0][1] if len(values) == 1 else None
    is_nested = isinstance(alone, dict) and any(
        isinstance(one, list | dict) or name.isdigit() for name, one in alone.items()
    )
    if isinstance(alone, list) or (is_nested and not _is_record(alone)):
        return _whole(alone, source, "one JSON text, not one object per line")
    return _lines(values, source)


def looks_like_json(text: str) -> bool:
    """Whether a text of another kind of file is JSON: all of it, or its first line."""
    start = text.lstrip()
    if not start.startswith(("{", "[")):
        return False
    for part in (start.split("\n", 1)[0], start):
        try:
            return isinstance(json.loads(part), dict | list)
        except _ERRORS:
            continue
    return False


def _sequence(text: str) -> list[tuple[int, Any]] | None:
    """The JSON values that follow each other in a text, with their lines; None if it is something else."""
    decoder = json.JSONDecoder()
    values: list[tuple[int, Any]] = []
    place, line, counted_to = 0, 1, 0
    while True:
        # Not a slice: this happens once per value, and the text may be long.
        space = _SPACE.match(text, place)
        assert space is not None
        place = space.end()
        if place >= len(text):
            return values or None
        line += text.count("\n", counted_to, place)
        counted_to = place
        try:
            value, place = decoder.raw_decode(text, place)
        except _ERRORS:
            return None
        if not isinstance(value, dict):
            return None
        values.append((line, value))


def _lines(values: Sequence[tuple[int, Any]], source: str, *notes: str) -> PromptTable:
    if len(values) > 1 and all(isinstance(value, str) for _, value in values):
        return texts_of(values, "line", *notes)
    for place, value in values:
        if not isinstance(value, dict):
            raise SafetyNeuronsError(
                f"Line {place} of {source} is {kind_of(value)}, not an object. Write each line as {_EXAMPLE}, or name "
                "the file .txt if it has one prompt per line."
            )
    if len({place for place, _ in values}) < len(values):
        # Objects in one line are told apart by their order.
        return table_of([(number, value) for number, (_, value) in enumerate(values, start=1)], "item", *notes)
    return table_of(values, "line", *notes)


def _whole(value: Any, source: str, *notes: str) -> PromptTable:
    """A table from one JSON value."""
    if isinstance(value, list):
        return _array(value, source, *notes)
    if not isinstance(value, dict):
        raise SafetyNeuronsError(f"{source} holds {kind_of(value)}. {_wanted()}")
    if _is_record(value):
        return table_of([(1, value)], "item", *notes)
    if (frame := _data_frame(value)) is not None:
        return _array(frame, source, *notes, "a table by columns")
    values = list(value.values())
    if values and all(isinstance(one, str) for one in values) and all(name.isdigit() for name in value):
        return _array(values, source, *notes)
    if values and _by_index(value):
        return _array(values, source, *notes, "an object of rows by name")
    lists = [name for name, one in value.items() if isinstance(one, list) and _is_rows(one)]
    if len(lists) == 1:
        return _array(value[lists[0]], source, *notes, f"the list `{lists[0]}`")
    if len(lists) > 1:
        raise SafetyNeuronsError(
            f"{source} holds an object with several lists ({', '.join(lists)}). Save the one with the prompts as an "
            f"array in a file of its own, for example with `jq '.[\"{lists[0]}\"]'`."
        )
    raise SafetyNeuronsError(f"{source} holds an object with {_listed(value)}. {_wanted()}")


def _array(values: Sequence[Any], source: str, *notes: str) -> PromptTable:
    places = list(enumerate(values, start=1))
    if values and all(isinstance(value, str) for value in values):
        return texts_of(places, "item", *notes)
    if values and all(isinstance(value, list) for value in values):
        return _array_of_lists(values, source, *notes)
    for place, value in places:
        if not isinstance(value, dict):
            raise SafetyNeuronsError(
                f"Item {place} of {source} is {kind_of(value)}. The array must hold only objects, such as {_EXAMPLE}, "
                "or only strings."
            )
    # Servers of data sets wrap each row.
    if values and all(isinstance(value.get("row"), dict) for value in values):
        cut = [place for place, value in places if value.get("truncated_cells")]
        if cut:
            notes = (*notes, f"{counted(len(cut), 'row has', 'rows have')} cells that the server cut off")
        return table_of([(place, value["row"]) for place, value in places], "item", *notes)
    return table_of(places, "item", *notes)


def _array_of_lists(values: Sequence[list[Any]], source: str, *notes: str) -> PromptTable:
    """Conversations, texts in lists of their own, or rows under a header."""
    if all(looks_like_conversation(value) for value in values):
        return table_of([(place, {"messages": value}) for place, value in enumerate(values, start=1)], "item", *notes)
    alone = all(len(value) == 1 and isinstance(value[0], str) for value in values)
    if alone and values[0][0].strip().casefold() not in HEADER_NAMES:
        return texts_of([(place, value[0]) for place, value in enumerate(values, start=1)], "item", *notes)
    header = values[0]
    if not all(isinstance(name, str) for name in header) or not _names_of(dict.fromkeys(header)):
        raise SafetyNeuronsError(
            f"{source} holds an array of arrays without the names of their columns. Write an array of objects, such as "
            f"[{_EXAMPLE}]: pandas does with to_json(orient='records')."
        )
    if wrong := next((place for place, row in enumerate(values, start=1) if len(row) != len(header)), None):
        raise SafetyNeuronsError(f"Item {wrong} of {source} has not as many values as there are columns. Correct it.")
    rows = [(place, dict(zip(header, row, strict=True))) for place, row in enumerate(values[1:], start=2)]
    return table_of(rows, "item", *notes)


def _is_record(value: Any, depth: int = 1) -> bool:
    """Whether a value is one row: an object with a text or a conversation under a known name.

    What is nested deeper than columns are has no name.
    """
    if not isinstance(value, dict):
        return False
    for name in _names_of(value):
        inside = value[name]
        if isinstance(inside, str):
            return True
        if name.strip().casefold() in CONVERSATION_COLUMNS and isinstance(inside, list) and _is_dicts(inside):
            # Or else a list of whole conversations.
            return not any(looks_like_conversation(one) for one in inside)
        # A column of conversations is a list of lists.
        if isinstance(inside, list) and _is_messages(inside):
            return True
    if depth == NESTING or _by_index(value):
        return False
    return any(isinstance(one, dict) and _is_record(one, depth + 1) for one in value.values())


def _by_index(value: Mapping[str, Any]) -> bool:
    """Whether an object holds rows by name or number, as pandas writes with orient="index"."""
    return all(isinstance(one, dict) and _names_of(one) for one in value.values()) and (
        len(value) > 1 or all(name.isdigit() for name in value)
    )


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and {"role", "from", "author", "speaker"} & set(one) for one in value)
    )


def _data_frame(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of a table that is written by columns, as pandas and `datasets` do; None if it is not one."""
    if {"columns", "data"} <= set(value) and isinstance(value["columns"], list) and isinstance(value["data"], list):
        names, data = value["columns"], value["data"]
        if all(isinstance(row, list) and len(row) == len(names) for row in data):
            return [dict(zip(map(str, names), row, strict=True)) for row in data]
        return None
    columns = list(value.values())
    if not _names_of(value) or (len(value) == 1 and isinstance(columns[0], list) and _is_dicts(columns[0])):
        return None
    if all(isinstance(column, dict) and column for column in columns):
        keys = list(columns[0])
        if not all(list(column) == keys for column in columns):
            return None
        return [{name: column[key] for name, column in value.items()} for key in keys]
    if all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns) and columns[0]:
        rows = zip(*columns, strict=True)
        return [dict(zip(value, row, strict=True)) for row in rows]
    return None


def _is_rows(value: Sequence[Any]) -> bool:
    return _is_dicts(value) or (bool(value) and all(isinstance(one, str) for one in value))


def _is_dicts(value: Sequence[Any]) -> bool:
    return bool(value) and all(isinstance(one, dict) for one in value)


def _names_of(value: Mapping[Any, Any]) -> list[str]:
    """The names among an object's that columns of prompts have."""
    known = (*WELL_KNOWN_COLUMNS, *CONVERSATION_COLUMNS)
    return [name for name in value if str(name).strip().casefold() in known]


def _wanted() -> str:
    return f'It must hold an array of objects or of strings, such as [{_EXAMPLE}] or ["..."].'


def _listed(value: Mapping[str, Any]) -> str:
    names = list(_names(value))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "no fields"


def _names(value: Mapping[str, Any]) -> Iterator[str]:
    for name, one in value.items():
        yield f"{name} ({kind_of(one)})"


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
