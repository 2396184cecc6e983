"""Text that attacks where it is shown, text of many scripts that must stay readable, and what no output may hold."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from markdown_it import MarkdownIt

# Each attacks one kind of output; all do harmless things at most.
HOSTILE = {
    "escape sequences": "\x1b[31m\x1b[2J\x1b]0;title\x07\x9b2K\x9dx\x9c",
    "terminal link": "\x1b]8;;http://x.test\x1b\\here\x1b]8;;\x1b\\",
    "overwriting": "ok\rOverwritten\x08\x08\x7f\x0b\x0c\x85",
    "bidirectional": "\u202egpj\u2066a\u2069\u200e\u200f\u061c",
    "invisible": "a\u200bb\u200cc\u200dd\u2060e\ufeff\u00ad\U000e0041\ufe0f\U000e0101\u115f\u3164\uffa0\u180e",
    "separators": "a\u2028Error: b\u2029c\nError: d\x1e\x00",
    "surrogates": "\ud800x\udfff\udcff\ufffe\ue000",
    "stacked marks": "\u0336a" + "\u0300\u0489" * 60,
    "rich markup": "[red]a[/red][/][link=http://x.test]b[/link]\\[x] :smile: [bold",
    "markdown": "[x](javascript:a) ![y](http://x.test/p.png) <http://x.test> **b** `c` ~~d~~ [^1] [z]: http://x.test",
    "web text": "http://x.test www.x.test a@x.test @everyone #123 GH-12 :tada: $x^2$ $$y$$ o/r#4",
    "blocks": "# h\n\n---\n- a\n1. b\n> c\n```\n    d\n| e | f |\n|---|---|\n=== <!-- g",
    "fences": "```` ` `` ``` ~~~ $`x`$",
    "html": "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- \"' --> <a href=javascript:b>",
    "attributes": '" onmouseover="alert(1)" style="x:y" srcdoc=\'<p>\' data:text/html,x &lt;b&gt; &#60;i&#62;',
    "templates": "{{ 7 * 7 }} {% raw %} ${a} %{x} <extra></extra><a href='http://x.test'>l</a><br>",
    "formula": "=cmd|' /C calc'!A1",
    "front matter": "---\ntags: [x]\n---",
    "very long": "W" * 5_000,
    "very wide": "\u6f22\ufdfd\U0001f469\u200d\U0001f4bb" * 1_000,
}
READABLE = {
    "Arabic": "السلام عليكم ٣",
    "Persian with non-joiners": "می\u200cخواهم خانه\u200cها",  # noqa: RUF001
    "Hebrew with points": "שָׁלוֹם",
    "Hindi with joiners": "क्\u200dष र्\u200dय श्\u200cर",
    "Bengali": "বাংলা",
    "Tamil": "தமிழ்",
    "Thai": "น้ำ",
    "Vietnamese, decomposed": "Tie\u0302\u0301ng Vie\u0323\u0302t",
    "Chinese, Japanese, Korean": "漢字 かな 한국어",
    "emoji": "👩\u200d💻 👨\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 ❤\ufe0f 👍🏽 1\ufe0f\u20e3 🇫🇷",
    "accents": "naïve — “quoted” … 5\u00a0% \u00d7 ½",
}
# What no output may hold. Joiners and selectors of emoji are looked at where they stand.
_FORBIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\ue000-\uf8ff\U000e0000-\U000e0fff]"
    "|[a-z0-9][\u200c\u200d\ufe0e\ufe0f](?!\u20e3)|(?:^|\\s)[\u0300-\u036f\u200c\u200d\ufe0e\ufe0f]|[\u0300-\u036f\u0489]{5}"
)
# What websites make of Markdown's text afterwards.
_WEB = re.compile(r"@\w|#\d|\w://|www\.|:[a-z]\w*:|\$|GH-\d")
_OWN_TAGS = {"p", "table", "thead", "tbody", "tr", "th", "td", "strong", "pre", "code"}


def forbidden(text: str) -> list[str]:
    """What is in the text that may not be, with what stands around it."""
    return [text[max(found.start() - 12, 0) : found.end() + 12] for found in _FORBIDDEN.finditer(text)]


def foreign_markdown(text: str, *own: str) -> list[str]:
    """What a CommonMark viewer or a website would make of the text but paragraphs, tables, code and bold titles."""
    allowed = _OWN_TAGS | set(own)
    found: list[str] = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        if token.type.startswith("html") or (token.tag and token.tag not in allowed):
            found.append(f"{token.type} {token.content[:80]}")
        for part in token.children or ():
            if part.tag not in ("", "strong", "code") or part.type in ("html_inline", "softbreak", "hardbreak"):
                found.append(f"{part.type} {token.content[:80]}")
            if part.type == "text" and (web := _WEB.search(part.content)):
                found.append(f"{web[0]} in {part.content[:80]}")
    return found


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, and the values but for what is said of pictures."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.shown: list[str] = []
        self.json: list[Any] = []
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [(name, None if name in ("title", "aria-label") else value) for name, value in attrs]))
        self.shown += [value or "" for name, value in attrs if name in ("title", "aria-label")]
        self._inside = "json" if ("type", "application/json") in attrs else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", []))

    def handle_data(self, data: str) -> None:
        if self._inside == "json":
            self.json.append(json.loads(data))
        elif self._inside not in ("script", "style"):
            self.shown.append(data)


def strings(value: Any) -> Iterator[str]:
    """All strings in JSON, names as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, content in value.items():
            yield from (key, *strings(content))
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)
