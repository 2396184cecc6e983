"""Text of strangers in Markdown: it shows just its characters, in any viewer.

A backslash keeps CommonMark from reading a character as its own, but not a website that looks at the text afterwards
for addresses, @mentions, #123, :emoji: and $formulas$. None looks into code, so words with one of these are code.
"""

import re
from typing import Any

from safety_neurons.core.visible import LIMIT, visible

_MARKUP = re.compile(r"([\\`*_{}\[\]>#|~$])")
# What would begin a list, a rule or a heading at the start of a block.
_OPENS_BLOCK = re.compile(r"^([-+=]|\d+(?=[.)]))")
# Bars, backticks, and the signs of links, HTML and template languages stay outside code, where they are escaped.
_WORD = re.compile(r"[^\s|`<>{}\[\]()\"']+")
# The minutes of a time are no emoji.
_AFTERWARDS = re.compile(
    r"@|\$|#\d|\bgh-\d|[a-z][a-z\d+.-]*://|\bmailto:|\bxmpp:|\bwww\.|:(?!\d\d:)[a-z\d_+-]+:", re.IGNORECASE
)


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def escaped(text: Any, limit: int = LIMIT) -> Markdown:
    """One line of Markdown that shows just these characters, within a block or a table."""
    shown = visible(text, limit)
    parts: list[str] = []
    end = 0
    for word in _WORD.finditer(shown):
        if _AFTERWARDS.search(word[0]):
            parts += [_plain(shown[end : word.start()]), f"`{word[0]}`"]
            end = word.end()
    return Markdown("".join([*parts, _plain(shown[end:])]))


def paragraph(text: Any, limit: int = LIMIT) -> Markdown:
    """A block of Markdown that shows just these characters."""
    return Markdown(_OPENS_BLOCK.sub(_opened, escaped(str(text).strip(), limit)))


def code_line(text: Any, limit: int = 4000) -> Markdown:
    """The one line of a block of code."""
    return Markdown(visible(text, limit))


def code_block(text: Any) -> Markdown:
    """A block of code of one line, whatever fences it holds."""
    shown = code_line(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return Markdown(f"{fence}\n{shown}\n{fence}")


def _plain(text: str) -> str:
    return _MARKUP.sub(r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")


def _opened(start: re.Match[str]) -> str:
    # A number cannot be escaped, but the sign after it can.
    return f"{start[0]}\\" if start[0].isdigit() else f"\\{start[0]}"
