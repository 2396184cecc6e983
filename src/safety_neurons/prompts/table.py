"""What a parsed prompt file holds: rows with values by column."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
# They hold conversations: lists of messages.
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation", "contents", "dialog", "dialogue", "turns")
# Where batch files for OpenAI's server and preference pairs keep the request.
NESTED_COLUMNS = ("body.messages", "body.input", "body.prompt", "input.messages")
# Other names that tell a header from a row of values.
HEADER_NAMES = frozenset(
    {*WELL_KNOWN_COLUMNS, *CONVERSATION_COLUMNS}
    | {"id", "index", "category", "split", "type", "response", "completion", "answer", "output", "label", "final_label"}
    | {"kind", "user", "model", "target", "source", "safe", "question_id", "prompt_id", "prefill", "cut_off"}
)
# Number of names in the longest name of a column, such as `meta.prompt`.
NESTING = 4


@dataclass(frozen=True)
class PromptRow:
    """One prompt's values by column. `place` is its line or its position in a JSON array, from 1."""

    place: int
    values: dict[str, Any]


@dataclass(frozen=True)
class PromptTable:
    """A parsed file. `columns` is empty if it holds texts only; `unit` is what a place is called in messages.

    `notes` say what about the file's form was found out or left out, in phrases such as "separated by semicolons".
    """

    columns: tuple[str, ...]
    rows: tuple[PromptRow, ...]
    unit: str = "line"
    notes: tuple[str, ...] = ()

    def find(self, *names: str) -> str | None:
        """The first of these columns that exists, if necessary ignoring case; or None."""
        for name in names:
            if name in self.columns:
                return name
            for column in self.columns:
                if column.casefold() == name.strip().casefold():
                    return column
        return None


def table_of(records: Sequence[tuple[int, Mapping[str, Any]]], unit: str, *notes: str) -> PromptTable:
    """A table of JSON objects with their places. What is inside of objects has columns such as `meta.prompt`."""
    rows = tuple(PromptRow(place, dict(_flattened(values))) for place, values in records)
    return PromptTable(tuple(dict.fromkeys(name for row in rows for name in row.values)), rows, unit, notes)


def texts_of(texts: Sequence[tuple[int, Any]], unit: str, *notes: str) -> PromptTable:
    """A table without columns."""
    return PromptTable((), tuple(PromptRow(place, {PLAIN: text}) for place, text in texts), unit, notes)


def _flattened(values: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value and depth < NESTING:
            yield from _flattened(value, f"{prefix}{name}.", depth + 1)
        else:
            yield f"{prefix}{name}", value


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun: "1 row", "2 rows"."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def kind_of(value: Any) -> str:
    """What a JSON value is called in messages."""
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
