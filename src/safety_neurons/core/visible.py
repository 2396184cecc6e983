"""Text of strangers as characters that can be seen: nothing in it moves a cursor, reorders a line, or hides.

Names, prompts, answers, and messages of libraries and servers come from strangers. Each output has one function that
makes them inert: `line` for the terminal, `core.markdown.escaped` for Markdown, `report.text.untrusted` for the page,
and `report.text.label` for figures. All of them build on `visible`.

What a script or an emoji needs stays: joiners where they shape letters or join emoji, variation selectors of emoji.
"""

import unicodedata
from typing import Any

# Controls, formats (all bidirectional marks are among them), lone surrogates, private use, unassigned, separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Unicode's Default_Ignorable_Code_Point among letters and marks, and the blank Braille pattern.
_BLANK = set("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
# Formats that are drawn: signs that span the digits after them.
_DRAWN = set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
_NON_JOINER, _JOINER = "\u200c", "\u200d"
_SELECTORS = {"\ufe0e", "\ufe0f"}
# What may stand in text, as long as it does what it is for.
_IN_CONTEXT = {_NON_JOINER, _JOINER, *_SELECTORS}
_NAMED = {"\n": "↵", "\t": "→", "\r": "\\r"}
# A mark with nothing below it would be drawn on the character before the text, which is ours.
_NOTHING = "\N{DOTTED CIRCLE}"
# No language stacks more marks on one letter; they would climb over the lines above.
_MARKS_ON_A_LETTER = 4
_VIRAMA = 9
# Scripts whose letters are joined: Arabic to Mongolian, and Meetei to Javanese and Myanmar extensions.
_JOINED_SCRIPTS = ((0x0600, 0x109F), (0x1700, 0x1CFF), (0xA800, 0xAAFF), (0x10A00, 0x11FFF), (0x1E900, 0x1E95F))
_SINGLE_EMOJI = set("\u00a9\u00ae\u203c\u2049\u2122\u2139\u3030\u303d\u3297\u3299")
_KEYCAP = "\u20e3"

# Characters of a cell, a heading or a note.
LIMIT = 600
# Characters of a line in the terminal: two long paths and a sentence.
LINE_LIMIT = 6000


def visible(text: Any, limit: int = LIMIT, *, lines: bool = False) -> str:
    """One line of at most `limit` characters that shows the text, its hidden characters as escapes; "…" marks a cut.

    Args:
        lines: keep line breaks.

    Applying it twice changes nothing more.
    """
    text = str(text)
    if lines:
        text = text.replace("\r\n", "\n")
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    length, marks, based = 0, 0, False
    # A megabyte of one word costs no more than its beginning.
    for place, letter in enumerate(text[:limit]):
        hidden = _is_hidden(letter)
        mark = not hidden and unicodedata.category(letter) in ("Mn", "Me")
        marks = marks + 1 if mark else 0
        if letter == "\n" and lines:
            piece, based = letter, False
        elif mark and not based and marks == 1:
            piece, based = _NOTHING + letter, True
        elif marks > _MARKS_ON_A_LETTER or (hidden and not _in_context(text, place)):
            piece, based = _NAMED.get(letter) or _escape(letter), False
        else:
            piece, based = letter, not letter.isspace()
        if length + len(piece) > limit:
            break
        shown.append(piece)
        length += len(piece)
    else:
        if len(text) <= limit:
            return "".join(shown)
    # What a joiner joined is cut off.
    while shown and shown[-1] in _IN_CONTEXT:
        shown.pop()
    return "".join(shown) + "…"


def line(text: Any, limit: int = LINE_LIMIT) -> str:
    """`visible` text for a line of the terminal; a long one keeps its end, where a message says what to do."""
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit // 2]} … {text[-limit // 2 :]}"
    return visible(text, 12 * limit)


def spelled_out(text: str) -> str:
    """`visible` text of any length with its line breaks, for output that is composed already."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    # No escape is longer than ten characters.
    return visible(text, 10 * len(text), lines=True)


def _is_hidden(letter: str) -> bool:
    if letter in _BLANK or letter in _SELECTORS or "\U000e0100" <= letter <= "\U000e01ef":
        return True
    return unicodedata.category(letter) in _HIDDEN and letter not in _DRAWN


def _escape(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) <= 0xFFFF else f"\\U{ord(letter):08x}"


def _in_context(text: str, place: int) -> bool:
    """Whether the joiner or selector at this place shapes what stands beside it."""
    letter, before, after = text[place], text[place - 1 : place], text[place + 1 : place + 2]
    if letter not in _IN_CONTEXT or not before:
        return False
    if letter in _SELECTORS:
        return _is_emoji(before) or (before in "0123456789#*" and after == _KEYCAP)
    if letter == _JOINER:
        emoji = _is_emoji(before) or (before == "\ufe0f" and place > 1 and _is_emoji(text[place - 2]))
        if (emoji and _is_emoji(after)) or unicodedata.combining(before) == _VIRAMA:
            return True
    return _is_joined(before) and _is_joined(after)


def _is_joined(letter: str) -> bool:
    """Whether joiners shape this letter, digit or mark."""
    return letter != "" and (
        any(first <= ord(letter) <= last for first, last in _JOINED_SCRIPTS)
        and unicodedata.category(letter)[0] in "LMN"
    )


def _is_emoji(letter: str) -> bool:
    if letter == "":
        return False
    pictures = 0x2190 <= ord(letter) <= 0x2BFF or 0x1F000 <= ord(letter) <= 0x1FAFF
    return letter in _SINGLE_EMOJI or (pictures and unicodedata.category(letter)[0] == "S")
