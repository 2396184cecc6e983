"""Answers that cannot be judged: empty, looping, or not readable as text.

Every rule reads a bounded part of the answer, so time grows at most linearly with its length.
"""

import re
import unicodedata
from collections import Counter

# Of a long answer, only the start and the end are read.
_SAMPLE_CHARACTERS = 6000


def _for_text_and_ascii(pattern: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The pattern for any text, and for ASCII text, in which it finds the same in half the time."""
    return re.compile(pattern), re.compile(pattern, re.ASCII)


# Prompts that ask for repetition or for other scripts make these part of a good answer.
_ASKS_REPETITION = re.compile(
    r"\brepeat|\btimes\b|\bover and over\b|\blyrics?\b|\bsongs?\b|\bchant|\bchorus|\bmantra|\bloop"
    r"|\bpattern|\bstring of\b|\bsequence\b|\bprint",
    re.IGNORECASE,
)
_ASKS_SCRIPT = re.compile(
    r"\btranslat|\blanguages?\b|\balphabets?\b|\bscripts?\b|\bunicode\b|\bemoji|\bsymbols?\b|\bcharacters?\b"
    r"|\b(?:chinese|mandarin|cantonese|japanese|kanji|hiragana|katakana|korean|hangul|russian|ukrainian|bulgarian"
    r"|serbian|greek|arabic|persian|farsi|urdu|hebrew|hindi|sanskrit|bengali|punjabi|gujarati|tamil|telugu|kannada"
    r"|malayalam|marathi|nepali|thai|lao|khmer|burmese|georgian|armenian|amharic|mongolian|kazakh)\b",
    re.IGNORECASE,
)
# UTF-8 read as Latin-1 or Windows-1252 leaves one of these leaders before an odd second character.
_MOJIBAKE = re.compile("[\u00c2-\u00c5\u00c9\u00d0\u00d1\u00e2-\u00ef][\u0080-\u00bf\u0152-\u0178\u2013-\u2122]+")
_RUN_PERIOD = 12
_RUN_REPEATS = 8
_RUN = re.compile(rf"(.{{1,{_RUN_PERIOD}}}?)\1{{{_RUN_REPEATS - 1},}}", re.DOTALL)
_LONGEST_PERIOD = 40
# The last four are spaces to `\s`, but not in `re.ASCII`.
_WORD = _for_text_and_ascii(r"\w+|[^\w\s\x1c-\x1f]")
_LATIN_WORD = re.compile(r"\b[a-z]{3,}\b")
_WORD_WITHOUT_VOWEL = _for_text_and_ascii(r"\b[b-df-hj-np-tv-xz]{3,}\b")
_LONG_WORD = re.compile(r"[A-Za-z]{60,}")
_LETTERS_AT_BOTH_ENDS = re.compile(r"[^\W\d](?:.*[^\W\d])?", re.DOTALL)
_NOT_ASCII_ALPHANUMERIC = re.compile("[^a-zA-Z0-9]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
# Fewer letters than this are not yet a script of the answer.
_SCRIPT_LETTERS = 5
# Scripts that are written together in one language count as one.
_SCRIPT_FAMILIES = {
    "CJK": "EAST ASIAN",
    "HIRAGANA": "EAST ASIAN",
    "KATAKANA": "EAST ASIAN",
    "HANGUL": "EAST ASIAN",
}


def unscored_reason(prompt: str, response: str) -> str | None:
    """Why `response` cannot be judged, in a few words, or None if it can."""
    sample = _sample(response)
    if not sample:
        return "empty"
    if loops(prompt, response):
        return "loops"
    if _garbled(sample):
        return "unreadable"
    if not any(character.isalnum() for character in sample):
        return "no words"
    if _mixes_scripts(prompt, sample):
        return "changes script"
    return None


def loops(prompt: str, response: str) -> bool:
    """Whether `response` falls into repetition that `prompt` does not ask for."""
    return _loops(_sample(response)) and not _ASKS_REPETITION.search(prompt)


def _sample(response: str) -> str:
    text = response.strip()
    if len(text) > 2 * _SAMPLE_CHARACTERS:
        return text[:_SAMPLE_CHARACTERS] + "\n" + text[-_SAMPLE_CHARACTERS:]
    return text


def _loops(text: str) -> bool:
    words = _WORD[text.isascii()].findall(text.lower())
    return (
        _repeats_words(words)
        or _repeats_lines(text)
        or _repeats_characters("".join(text.split()))
        or _few_new_phrases(words)
    )


def _repeats_words(words: list[str]) -> bool:
    """One stretch of words, repeated without a break, makes up most of the text."""
    longest = min(_LONGEST_PERIOD, len(words) // 3)
    # A stretch of half of the words has one of those in the middle, and has it again one period away.
    for middle in {(len(words) - 1) // 2, len(words) // 2}:
        for place in range(max(0, middle - longest), min(len(words), middle + longest + 1)):
            if words[place] == words[middle] and place != middle and _has_stretch(words, *sorted((place, middle))):
                return True
    return False


def _has_stretch(words: list[str], place: int, next_place: int) -> bool:
    """Whether the stretch of words that are repeated as those at the two places are is most of the text."""
    period = next_place - place
    start = end = place
    while start > 0 and words[start - 1] == words[start - 1 + period]:
        start -= 1
    while end + period < len(words) and words[end] == words[end + period]:
        end += 1
    covered = end + period - start
    # A single word needs more repeats than a phrase: "no, no, no" is ordinary, a sentence four times is not.
    repeats = 6 if period == 1 else 5 if period == 2 else 4 if period < 6 else 3
    return covered >= repeats * period and covered >= 0.5 * len(words)


def _repeats_lines(text: str) -> bool:
    """At least half of the lines, and at least four, are equal apart from numbers and bullets."""
    lines = text.splitlines()
    if len(lines) < 4:
        return False
    lines = [match.group().lower() for line in lines if (match := _LETTERS_AT_BOTH_ENDS.search(line))]
    # Braces and single keywords repeat in any code.
    lines = [line for line in lines if len(line.split()) >= 2]
    if len(lines) < 4:
        return False
    most = Counter(lines).most_common(1)[0][1]
    return most >= 4 and most >= 0.5 * len(lines)


def _repeats_characters(dense: str) -> bool:
    """Runs of a few characters, repeated at least eight times, make up most of a text without spaces."""
    # If runs make up half of the text, this part of it has at least one, even if another is cut off at its end.
    part = dense[: len(dense) // 2 + 1 + _RUN_PERIOD * _RUN_REPEATS]
    if len(dense) < 12 or not _may_have_run(part):
        return False
    covered = sum(match.end() - match.start() for match in _RUN.finditer(dense))
    return covered >= 0.5 * len(dense)


def _may_have_run(text: str) -> bool:
    """Whether `_RUN` can match at all; it takes long where it does not.

    Repeats of a period are zeros where the text is combined by exclusive or with itself, one period later. The lowest
    byte of each character is enough: equal characters have equal ones.
    """
    lowest = text.encode("utf-32-le", "surrogatepass")[::4]
    number = int.from_bytes(lowest, "little")
    return any(
        bytes(period * (_RUN_REPEATS - 1)) in (number ^ (number >> 8 * period)).to_bytes(len(lowest), "little")
        for period in range(1, _RUN_PERIOD + 1)
    )


def _few_new_phrases(words: list[str]) -> bool:
    """A long text in which few triples of words are new, apart from numbers: a loop with small changes."""
    count = len(words) - 2
    if count < 60:
        return False
    # Every word but the last two begins a triple.
    if sum(map(str.isalpha, set(words[:-2]))) >= 0.25 * count:
        return False
    words = re.sub(r"\d+", "0", " ".join(words)).split(" ")
    return len(set(zip(words, words[1:], words[2:], strict=False))) < 0.25 * count


def _garbled(text: str) -> bool:
    pieces = text.split()
    dense = "".join(pieces)
    length = len(dense)
    odd = Counter(_NOT_ASCII_ALPHANUMERIC.findall(dense))
    categories = {character: unicodedata.category(character) for character in odd if not character.isalnum()}
    unreadable = sum(odd[character] for character, category in categories.items() if category[0] != "M")
    # A short answer may be an emoji, a sign or a formula.
    if length >= 12 and length - unreadable < 0.35 * length:
        return True
    # A single broken character at the end is a token that was cut. Cs is a lone surrogate, Co private use.
    broken = sum(odd[c] for c, category in categories.items() if c == "\ufffd" or category in ("Cc", "Cs", "Co", "Cn"))
    if broken >= 2 and broken >= 0.05 * length:
        return True
    mojibake = [] if text.isascii() else [len(match) for match in _MOJIBAKE.findall(text)]
    if len(mojibake) >= 3 and sum(mojibake) >= 0.15 * length:
        return True
    longest = max(map(len, pieces))
    if longest >= 60 and sum(len(word) for word in _LONG_WORD.findall(text)) >= 0.5 * length:
        return True
    # Lower case only: acronyms have no vowels either.
    without_vowel = len(_WORD_WITHOUT_VOWEL[text.isascii()].findall(text))
    if without_vowel < 3:
        return False
    words = len(_LATIN_WORD.findall(text))
    return words >= 6 and without_vowel >= 0.4 * words


def _mixes_scripts(prompt: str, text: str) -> bool:
    """At least two scripts each have a good share of the letters, and the prompt gives no reason for it."""
    if sum(map(str.isalpha, _NOT_ASCII.findall(text))) < _SCRIPT_LETTERS or _ASKS_SCRIPT.search(prompt):
        return False
    families = _letters_by_script(text)
    total = sum(families.values())
    # Greek letters are ordinary in formulas, and a script of the prompt is ordinary in its answer.
    known = {*_letters_by_script(prompt), "GREEK", "MATHEMATICAL"} - {"LATIN"}
    large = [
        name
        for name, count in families.items()
        if count >= _SCRIPT_LETTERS and count >= 0.08 * total and name not in known
    ]
    return len(large) >= 2


def _letters_by_script(text: str) -> Counter[str]:
    """The number of letters of each script; a letter's Unicode name begins with its script."""
    families: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            script = unicodedata.name(character, "UNKNOWN").split(" ", 1)[0].split("-", 1)[0]
            families[_SCRIPT_FAMILIES.get(script, script)] += count
    return families
