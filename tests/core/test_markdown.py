"""Text of strangers in Markdown shows just its characters."""

import itertools

import pytest
from markdown_it import MarkdownIt

from builders.hostile import HOSTILE, READABLE, forbidden, foreign_markdown
from safety_neurons.core.markdown import code_block, escaped, paragraph
from safety_neurons.core.tables import Table, TableCell, markdown, words
from safety_neurons.core.visible import visible


def shown(text: str) -> str:
    """What a viewer shows of Markdown."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return "".join(part.content for token in tokens for part in token.children or ())


@pytest.mark.parametrize("text", [*HOSTILE.values(), *READABLE.values()], ids=[*HOSTILE, *READABLE])
def test_a_viewer_shows_the_characters_and_makes_nothing_of_them(text: str) -> None:
    for written in (paragraph(text), f"a {escaped(text)} b", markdown([], [text, text])):
        assert foreign_markdown(written) == []
        assert forbidden(written) == []
    assert shown(paragraph(text)).split() == visible(text.strip()).split()
    table = Table.of(text, words(text, text), [[text, TableCell(text, text)]] * 2, text)
    written = markdown([table], [text], text)
    assert foreign_markdown(written) == []
    rows = [line for line in written.splitlines() if line.startswith("|")]
    tokens = MarkdownIt("commonmark").enable("table").parse(written)
    assert len(rows) == 4
    assert sum(token.type in ("td_open", "th_open") for token in tokens) == 6
    cells = [two.content for one, two in itertools.pairwise(tokens) if one.type == "td_open"]
    assert len(cells) == 4
    (code,) = (token for token in tokens if token.type == "fence")
    assert code.content == visible(text, 4000) + "\n"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a|b\nc", r"a\|b↵c"),
        ("`x` *y* <b>", r"\`x\` \*y\* &lt;b\>"),
        ("\\|", r"\\\|"),
        ("see http://x.test, or @you", "see `http://x.test,` or `@you`"),
        ("<http://x.test>", "&lt;`http://x.test`\\>"),
        ("costs $5", "costs `$5`"),
        ("12:30:45 a:b 1#", "12:30:45 a:b 1\\#"),
    ],
)
def test_escapes(text: str, written: str) -> None:
    assert escaped(text) == written


@pytest.mark.parametrize("text", ["- a", "+ a", "1. a", "23) a", "---", "===", "    a", "# a", "> a"])
def test_a_note_opens_no_block(text: str) -> None:
    assert [token.type for token in MarkdownIt("commonmark").parse(paragraph(text))] == [
        "paragraph_open",
        "inline",
        "paragraph_close",
    ]
    assert shown(paragraph(text)) == text.strip()


def test_code_cannot_leave_its_fence() -> None:
    (code,) = MarkdownIt("commonmark").parse(code_block("a ``` b ```` c"))
    assert code.content == "a ``` b ```` c\n"
