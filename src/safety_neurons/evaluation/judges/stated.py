"""What a model states in the form that it was asked for: `verdict: yes`, alone or among other words.

Only a statement counts: words before and after it decide nothing, whatever they are. It begins a line, a sentence or
an item ("The answer says verdict: no" states nothing), and its value is followed by the end of the line, a mark, or a
reason. Everything is read in one pass over a reply of any length.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from safety_neurons.models.reasoning import part

# Emphasis, headings and code; a block quotation is somebody else's words.
_MARKDOWN = re.compile(r"[*_`#]+")
_FENCE = re.compile(r"```\w*")
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb", "\u300c": "\u300d"}
# What may stand between the name and the value.
_SEPARATOR = re.compile(r"[\"']?[ \t]{0,3}(?:(?:is|was)\b[ \t]?:?|[:=|>]|[-\u2013\u2014]{1,2}>?)\s{0,3}[\"'(\[<{]{0,2}")
# What may stand before the name, up to the start of a line, a sentence or an item.
_BEGINS = re.compile(
    r"(?:^|[.!?;{(\[<|]|[:=][ \t]*[\"']?[\w./]{1,12}[\"']?(?: \([^)]*\))?,)[^\w\n]{0,8}(?:\d{1,2}[.)][ \t]*)?"
    r"(?:(?:the|my|your|final|overall|so|thus|therefore|hence|and)[ \t,]{1,2}){0,3}[\"']?$"
)
_WINDOW = 60
# A reason may follow the value without a mark.
_CLEAR_END = (
    r"(?![-'\u2019]?\w|[^\w\n]{{1,4}}(?:{choices})\b|[.,]\d)(?=\s*(?:$|\n|[^\w\s/|?])|\s*\|(?!\s*(?:{choices})\b)"
    r"|[ \t]+(?:because|since|as|the|this|it|its|i|there|that|given|due)\b)"
)
_GRADE = r"[1-5]"
_OUT_OF = r"(?:[ \t]*(?:/|out of)[ \t]*5)?"


def spoken(said: str) -> str | None:
    """The model's text after its thinking; None if it was still thinking at the end."""
    parted = part(said)
    return None if parted.unfinished else parted.answer


def stated(said: str, name: str, *choices: str) -> str | None:
    """The one of `choices` that is stated for `name`; None if none is, or if statements contradict each other."""
    found = statements(said, name, *choices)
    return found.pop() if len(found) == 1 and "" not in found else None


def stated_grade(said: str, name: str) -> int | None:
    """The grade from 1 to 5 that is stated for `name`; None like in `stated`."""
    found = _values(said, name, _GRADE, _OUT_OF)
    return int(found.pop()) if len(found) == 1 and "" not in found else None


def statements(said: str, name: str, *choices: str) -> set[str]:
    """All that is stated for `name`: some of `choices`, and "" where something else is; empty if nothing is."""
    return _values(said, name, "|".join(choices), "")


def _values(said: str, name: str, choices: str, suffix: str) -> set[str]:
    text = unicodedata.normalize("NFKC", said).lower()
    objects = _in_json(text, name)
    if objects is not None:
        form = re.compile(rf"({choices}){suffix}")
        return {match[1] if (match := form.fullmatch(one)) else "" for one in objects}
    value = re.compile(rf"({choices}){suffix}{_CLEAR_END.format(choices=choices)}")
    # The form that was asked for, repeated before the answer, states nothing.
    form = re.compile("a number" if suffix else rf"(?:{choices})[ \t]*(?:or|/|\|)[ \t]*(?:{choices})\b(?![ \t]*\w)")
    plain = _MARKDOWN.sub("", _unquoted(text))
    found = set()
    for start in _places(plain, name):
        if form.match(plain, start):
            continue
        match = value.match(plain, start)
        found.add(match[1] if match else "")
    return found


def _places(text: str, name: str) -> Iterator[int]:
    """Where the values of the statements about `name` begin."""
    for match in re.finditer(rf"(?<![\w/-]){name}(?!\w)", text):
        separator = _SEPARATOR.match(text, match.end())
        line = max(text.rfind("\n", max(0, match.start() - _WINDOW), match.start()) + 1, match.start() - _WINDOW, 0)
        before = text[line : match.start()]
        if line > 0 and text[line - 1] != "\n":
            # Not the start of a line.
            before = f"x {before}"
        if separator is None or not _BEGINS.search(before):
            continue
        quote = before[-1:] if before[-1:] in _QUOTES else ""
        if quote and text[match.end() : match.end() + 1] != _QUOTES[quote]:
            # A quotation, not the name of a field.
            continue
        yield separator.end()


def _unquoted(text: str) -> str:
    """The text without quotation marks around all of it, and without block quotations if there is anything else."""
    text = text.strip()
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    lines = text.split("\n")
    own = [line for line in lines if not line.lstrip().startswith(">")]
    if any(line.strip() for line in own):
        return "\n".join(own)
    return "\n".join(line.lstrip("> \t") for line in lines)


def _in_json(text: str, name: str) -> list[str] | None:
    """The values of the fields called `name`, if the whole text is JSON that has some."""
    bare = _FENCE.sub("", text).strip()
    if bare[:1] not in ("{", "["):
        return None
    found: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for field, value in pairs:
            if field.strip() == name:
                plain = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
                found.append(str(plain).strip().rstrip(".") if isinstance(plain, str | int | float) else "")
        return dict(pairs)

    try:
        json.loads(bare, object_pairs_hook=note, strict=False)
    except (ValueError, RecursionError):
        return None
    return found or None
