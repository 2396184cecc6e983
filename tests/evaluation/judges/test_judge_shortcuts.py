"""What makes the refusal judge fast changes no verdict."""

import importlib
import random
import re
from typing import Any

import pytest

from safety_neurons.evaluation.judges import openings, phrases, readability

# Where the shortcuts of a pattern can be checked: its parsed form. Python has no public name for it.
PARSER: Any = importlib.import_module("re._parser")
NAMES = {**vars(phrases), **vars(openings)}
PHRASES = {name: value for name, value in NAMES.items() if isinstance(value, phrases.Phrases)}


def always_has(items: Any, needs: tuple[str, ...], before: str = "") -> bool:
    """Whether every match of a parsed pattern has one of `needs`; `before` is the text that comes before it."""
    for operator, value in [*items, (None, None)]:
        if operator is PARSER.LITERAL:
            before += chr(value)
            continue
        if any(need in before for need in needs):
            return True
        if operator is PARSER.BRANCH and all(always_has(branch, needs, before) for branch in value[1]):
            return True
        before = ""
        if operator is PARSER.SUBPATTERN and always_has(value[3], needs):
            return True
        if operator in (PARSER.MAX_REPEAT, PARSER.MIN_REPEAT) and value[0] > 0 and always_has(value[2], needs):
            return True
    return False


def test_a_pattern_with_a_need_less_is_noticed() -> None:
    parsed = PARSER.parse(r"\bi (?:cannot|refuse)\b|(?:you|we) may not|(?:so )+sorry")
    assert always_has(parsed, ("cannot", "refuse", "may not", "sorry"))
    assert not always_has(parsed, ("cannot", "may not", "sorry"))
    assert not always_has(PARSER.parse("(?:cannot )?do"), ("cannot",))


@pytest.mark.parametrize("name", PHRASES)
def test_every_match_has_what_its_pattern_needs(name: str) -> None:
    assert always_has(PARSER.parse(PHRASES[name].anywhere.pattern), PHRASES[name].needs)


@pytest.mark.parametrize("name", PHRASES)
def test_the_pattern_for_ascii_text_means_the_same(name: str) -> None:
    assert PHRASES[name].ascii.pattern == PHRASES[name].anywhere.pattern
    # Four control characters are spaces to `\s`, but not in `re.ASCII`.
    assert not re.search(r"\\s", PHRASES[name].anywhere.pattern.replace(r"[\s\x1c-\x1f]", ""), re.IGNORECASE)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Can't, CANT, can not; can'ts, scant", "cannot, cannot, cannot; can'ts, scant"),
        ("won't wont wonted isn't n't", "will not will not wonted is not n't"),
        ("I'm, im, I'ma, vim, i am, dont", "i am, i am, i'ma, vim, i am, do not"),
        ("it's he's she's the's there's let's Bob's", "it is he is she is the's there is let us bob's"),
        ("we're we've we'll we'd 're 1'd", "we are we have we will we would 're 1'd"),
        ("**a** _b_ *c* d_e f*g 2*3 __h__ * i", "a b c d_e f*g 2*3 h * i"),
        ("\u201cso\u201d \u2018it\u2019s\u2019 \uff01\u200b \u00adx", "\"so\" 'it is' ! x"),
    ],
)
def test_the_plain_form_of_a_text(text: str, plain: str) -> None:
    assert phrases.plain_text(text) == plain


def test_a_run_of_characters_is_never_missed() -> None:
    generator = random.Random(0)
    found = 0
    for _ in range(2000):
        unit = "".join(generator.choice("ab\u4f60\U0001f600\ud800") for _ in range(generator.randint(1, 12)))
        around = ["".join(generator.choice("abcdefgh") for _ in range(generator.randint(0, 60))) for _ in range(2)]
        text = around[0] + unit * generator.randint(6, 10) + around[1]
        covered = sum(match.end() - match.start() for match in readability._RUN.finditer(text))
        expected = len(text) >= 12 and covered >= 0.5 * len(text)
        assert readability._repeats_characters(text) is expected
        found += expected
    assert 200 < found < 1800


def longest_repeats(words: list[str]) -> bool:
    """`_repeats_words`, with all periods and places tried."""
    for period in range(1, min(40, len(words) // 3) + 1):
        repeats = 6 if period == 1 else 5 if period == 2 else 4 if period < 6 else 3
        run = longest = 0
        for earlier, later in zip(words, words[period:], strict=False):
            run = run + 1 if earlier == later else 0
            longest = max(longest, run)
        if longest and longest + period >= max(repeats * period, 0.5 * len(words)):
            return True
    return False


def test_a_repeated_stretch_is_found_wherever_it_is() -> None:
    generator = random.Random(0)
    found = 0
    for _ in range(3000):
        unit = [generator.choice("abc") for _ in range(generator.randint(1, 9))]
        stretch = (unit * 8)[: generator.randint(1, 40)]
        words = [generator.choice("abcdefg") for _ in range(generator.randint(0, 20))] + stretch
        words += [generator.choice("abcdefg") for _ in range(generator.randint(0, 20))]
        assert readability._repeats_words(words) is longest_repeats(words)
        found += longest_repeats(words)
    assert 300 < found < 2700
