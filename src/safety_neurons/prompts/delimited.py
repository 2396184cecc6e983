"""Tables as text, as spreadsheets and pandas save them: which character separates the values is found out."""

# csv is imported late, as bundled sets do not need it.
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.prompts.table import HEADER_NAMES, WELL_KNOWN_COLUMNS, PromptRow, PromptTable, counted

if TYPE_CHECKING:
    from csv import Dialect

_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# A character that no text has, for tables of one column whose prompts may have any separator.
_NONE = "\x1f"
# Excel reads and writes a first line that names the separator.
_SEPARATOR_LINE = re.compile(r'"?sep=(?P<separator>[^\n"])"?[ \t;,]*(?:\n|$)', re.IGNORECASE)
_LONGEST_NAME = 40
# A title and blank lines may stand above the header of a spreadsheet.
_MOST_LINES_ABOVE = 10
# The line under the header of a table in Markdown.
_RULE = re.compile(r":?-+:?")


@dataclass(frozen=True)
class _Form:
    """How values are separated and quoted."""

    separator: str
    spaced: bool = False
    escaped: bool = False
    literal: bool = False

    def dialect(self) -> "type[Dialect]":
        import csv

        class Chosen(csv.Dialect):
            delimiter = self.separator
            quotechar = '"'
            lineterminator = "\n"
            # Otherwise an unclosed quotation mark silently swallows the rest of the file.
            strict = True
            skipinitialspace = self.spaced
            doublequote = not self.escaped
            escapechar = "\\" if self.escaped else None
            quoting = csv.QUOTE_NONE if self.literal else csv.QUOTE_MINIMAL

        return Chosen


@dataclass(frozen=True)
class _Reading:
    """A text read in one form: its header and its rows with the lines that they begin in."""

    form: _Form
    header: tuple[str, ...]
    rows: tuple[tuple[int, list[str]], ...]
    empty: int

    @property
    def too_wide(self) -> tuple[int, int] | None:
        """The line and the number of values of the first row with more than the header has."""
        width = len(self.header)
        for place, values in self.rows:
            if any(value.strip() for value in values[width:]):
                return place, len(values)
        # In a table of one column, a separator at the end of some rows only belongs to their texts.
        if width == 1 and len({len(values) for _, values in self.rows}) > 1:
            return next((place, len(values)) for place, values in self.rows if len(values) > 1)
        return None

    @property
    def even(self) -> bool:
        return all(len(values) == len(self.header) for _, values in self.rows)


def parse_delimited(text: str, source: str, usual: str) -> PromptTable:
    """Delimited values with a header; empty rows are skipped.

    The separator is that of which the header makes the most well-known names, and which every row agrees with; `usual`
    is the one that the file's ending promises.

    Raises:
        SafetyNeuronsError: the header has no names, or a row does not fit to it.
    """
    import csv

    text = io.StringIO(text, newline=None).read()
    named = _SEPARATOR_LINE.match(text)
    skipped = 0
    if named:
        separators, text, skipped = [named["separator"]], text[named.end() :], 1
    else:
        separators = [usual, *(separator for separator in _NAMES if separator != usual)]
    above = _lines_above_header(text, separators)
    text, skipped = "\n".join(text.split("\n")[above:]), skipped + above
    ranked = _ranked(text, separators)
    problem: csv.Error | None = None
    misfit: _Reading | None = None
    for form in _forms(ranked, text):
        try:
            reading = _read(text, form, skipped)
        except csv.Error as error:
            problem = problem or error
            continue
        if reading.too_wide is None and (not form.literal or reading.even):
            notes = [f"{counted(above, 'line')} above the header skipped"] if above else []
            return _table(reading, source, usual, bool(named), notes)
        if problem is None:
            misfit = misfit or reading
    if misfit is None:
        assert problem is not None
        raise SafetyNeuronsError(_broken(text, _Form(ranked[0]), problem, source, skipped)) from problem
    place, width = misfit.too_wide or (1, 0)
    raise SafetyNeuronsError(
        f"Line {place} of {source} has {counted(width, 'value')} for {counted(len(misfit.header), 'column')}. Quote "
        "prompts that contain the separator."
    )


def is_table(text: str) -> bool:
    """Whether a plain text is a table: its first line is a header, and what follows agrees with it."""
    import csv

    text = io.StringIO(text, newline=None).read()
    if _SEPARATOR_LINE.match(text):
        return True
    for separator in ("\t", ";", ",", "|"):
        try:
            header = _header_of(text, separator)
            names = [name.strip().casefold() for name in header if name.strip()]
            if not {*names} & {*WELL_KNOWN_COLUMNS, "messages", "conversations"}:
                continue
            if all(name in HEADER_NAMES for name in names):
                return bool(text.strip("\n").count("\n"))
            short = all(len(name) <= _LONGEST_NAME and not name.endswith((".", "?", "!")) for name in names)
            reading = _read(text, _Form(separator), 0)
        except csv.Error:
            continue
        if short and len(names) > 1 and reading.rows and reading.even:
            return True
    return False


def _lines_above_header(text: str, separators: Sequence[str]) -> int:
    """The number of lines above the header, with one value each: a title, for example, and blank lines.

    A header that is not in the first line has names in several columns, one of them well known.
    """
    lines = text.split("\n")[:_MOST_LINES_ABOVE]
    for separator in separators:
        for place, line in enumerate(lines):
            values = [value for value in _safe_header(line, separator) if value]
            if not values and line.strip(f' "{separator}'):
                break
            if len(values) < 2:
                continue
            known = any(value.casefold() in WELL_KNOWN_COLUMNS for value in values)
            names = all(len(value) <= _LONGEST_NAME and not value.endswith((".", "?", "!")) for value in values)
            titled = any(each.strip(f' "{separator}') for each in lines[:place])
            if known and names and titled and lines[0].strip(' "').casefold() not in HEADER_NAMES:
                return place
            break
    return 0


def _ranked(text: str, separators: Sequence[str]) -> list[str]:
    """The separators that make the most of the header, the usual one first among equals."""
    import csv

    ranks = {}
    for separator in separators:
        try:
            names = [name for name in _header_of(text, separator) if name]
        except csv.Error:
            continue
        ranks[separator] = (sum(name.casefold() in HEADER_NAMES for name in names), len(names))
    best = max(ranks.values(), default=None)
    return [separator for separator, rank in ranks.items() if rank == best] or [separators[0]]


def _forms(separators: Sequence[str], text: str) -> Iterator[_Form]:
    for separator in separators:
        yield from (_Form(separator), _Form(separator, spaced=True))
    if all(len(header := _safe_header(text, one)) == 1 and header == _safe_header(text, _NONE) for one in separators):
        yield _Form(_NONE)
    for separator in separators:
        # Without doubled quotation marks csv is not strict: this form needs its sign.
        if '\\"' in text or f"\\{separator}" in text:
            yield _Form(separator, escaped=True)
        # Only tables with tabs are written without quotation marks by custom.
        if separator == "\t" and len(_safe_header(text, separator)) > 1:
            yield _Form(separator, literal=True)


def _safe_header(text: str, separator: str) -> tuple[str, ...]:
    import csv

    try:
        return _header_of(text, separator)
    except csv.Error:
        return ()


def _header_of(text: str, separator: str) -> tuple[str, ...]:
    import csv

    reader = csv.reader(io.StringIO(text, newline=""), _Form(separator, spaced=True).dialect())
    return next((_stripped(values) for values in reader if any(value.strip() for value in values)), ())


def _stripped(header: Sequence[str]) -> tuple[str, ...]:
    """A header's names; nameless columns at its end, which spreadsheets add, are none."""
    names = [name.strip().strip("\ufeff\u200b").strip() for name in header]
    while names and not names[-1]:
        names.pop()
    return tuple(names)


def _read(text: str, form: _Form, skipped: int) -> _Reading:
    import csv

    reader = csv.reader(io.StringIO(text, newline=""), form.dialect())
    header: tuple[str, ...] = ()
    rows: list[tuple[int, list[str]]] = []
    start = 1
    empty = 0
    for values in reader:
        # The place of a row is its first line; quoted fields may span several.
        place, start = start + skipped, reader.line_num + 1
        if not any(value.strip() for value in values):
            empty += len(values) > 1
        elif not header:
            header = _stripped(values)
        else:
            rows.append((place, values))
    return _Reading(form, header, tuple(rows), empty)


def _table(reading: _Reading, source: str, usual: str, named: bool, notes: list[str]) -> PromptTable:
    header, form = reading.header, reading.form
    if not any(header):
        raise SafetyNeuronsError(
            f"The header of {source} has no names. Put column names such as `prompt` into the first line."
        )
    twice = sorted(name for name, count in Counter(header).items() if name and count > 1)
    if twice:
        raise SafetyNeuronsError(
            f"The header of {source} names the column {twice[0]!r} more than once. Rename all but one."
        )
    # Tables that were put together from several have the header of each.
    rows = [(place, values) for place, values in reading.rows if _stripped(values) != header]
    repeated = len(reading.rows) - len(rows)
    if form.separator == "|" and rows and all(_RULE.fullmatch(value.strip()) for value in rows[0][1] if value.strip()):
        rows = rows[1:]
    if len(header) == 1 and form.separator != usual and not named and all(len(values) == 1 for _, values in rows):
        notes.append("one column, whose texts are taken with all their separators")
    elif len(header) > 1 and (form.separator != usual or named):
        notes.append(f"separated by {_NAMES.get(form.separator, repr(form.separator))}")
    if form.escaped:
        notes.append("with backslashes as escapes")
    if form.literal:
        notes.append("with quotation marks as part of the texts")
    if reading.empty:
        notes.append(f"{counted(reading.empty, 'empty row')} skipped")
    if repeated:
        notes.append(f"{counted(repeated, 'repeated header')} skipped")
    # A column without a name is usually a pandas index.
    table = tuple(
        PromptRow(place, {name: value for name, value in zip(header, values, strict=False) if name})
        for place, values in rows
    )
    return PromptTable(tuple(name for name in header if name), table, notes=tuple(notes))


def _broken(text: str, form: _Form, error: Exception, source: str, skipped: int) -> str:
    import csv

    reader = csv.reader(io.StringIO(text, newline=""), form.dialect())
    start = 1
    try:
        for _ in reader:
            start = reader.line_num + 1
    except csv.Error:
        pass
    return (
        f"{source} cannot be read as a table near line {reader.line_num + skipped}, in the row starting in line "
        f"{start + skipped} ({error}). Usual causes: an unclosed quotation mark, one inside a field that is not "
        f"doubled, or a prompt of more than {csv.field_size_limit()} characters."
    )
