"""Text of strangers as characters that can be seen."""

import random
import time

import pytest

from builders.hostile import HOSTILE, READABLE, forbidden
from safety_neurons.core.visible import line, spelled_out, visible


@pytest.mark.parametrize("text", READABLE.values(), ids=READABLE)
def test_every_script_stays_readable(text: str) -> None:
    assert visible(text) == line(text) == spelled_out(text) == text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_nothing_hidden_is_left(text: str) -> None:
    for shown in (visible(text), line(text), visible(text, 40)):
        assert forbidden(shown) == []
        assert "\n" not in shown
    assert len(visible(text)) <= 601
    assert len(visible(text, 40)) <= 41


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m\x9b\u202e\x85", "a\\u001b[31m\\u009b\\u202e\\u0085"),
        ("a\nb\tc\rd", "a↵b→c\\rd"),
        ("a\u200db", "a\\u200db"),
        ("a\u200c", "a\\u200c"),
        ("x\ufe0f", "x\\ufe0f"),
        ("❤\ufe0f\ufe0f", "❤\ufe0f\\ufe0f"),
        ("\u200d👩", "\\u200d👩"),
        ("\U0001f3f4\U000e0067", "\U0001f3f4\\U000e0067"),
        ("\u0301a", "◌\u0301a"),
        ("a\u0301\u0301\u0301\u0301\u0301", "a\u0301\u0301\u0301\u0301\\u0301"),
        ("\u0600\u0661", "\u0600\u0661"),
    ],
)
def test_hidden_characters_are_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_lines_are_kept_where_they_are_asked_for() -> None:
    assert visible("a\r\nb\n\u2028c\rd", lines=True) == "a\nb\n\\u2028c\\rd"
    assert visible("a\n\u0301", lines=True) == "a\n◌\u0301", "a mark at the start of a line has nothing below it"


def test_twice_is_once_and_no_longer_than_the_limit() -> None:
    alphabet = [*"".join([*HOSTILE.values(), *READABLE.values()])[:2000], *"\u200d\u200c\ufe0f\u0301\x1b\n👩क्"]
    source = random.Random(0)
    for _ in range(3000):
        text = "".join(source.choices(alphabet, k=source.randrange(30)))
        limit = source.choice((5, 12, 600))
        once = visible(text, limit)
        assert visible(once, limit) == once, ascii(text)
        assert len(once) <= limit + 1
        assert forbidden(once) == [], ascii(text)
        assert spelled_out(once) == once


def test_a_megabyte_costs_no_more_than_its_beginning() -> None:
    text = "\x1b" * 50_000_000
    began = time.perf_counter()
    visible(text)
    line(text)
    assert time.perf_counter() - began < 0.5


def test_a_long_line_keeps_its_end() -> None:
    said = line(f"There is no file {'W' * 1_000_000}. Choose another.")
    assert said.startswith("There is no file WWW")
    assert said.endswith("WWW. Choose another.")
    assert len(said) < 6100
