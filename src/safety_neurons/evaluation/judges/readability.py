"""Answers that cannot be judged: empty, looping, or not readable as text.

Every rule reads a bounded part of the answer, so time grows at most linearly with its length.
"""

import re
import unicodedata
from collections import Counter

# Of a long answer, only the start and the end are read.
_SAMPLE_CHARACTERS = 6000

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
_RUN = re.compile(r"(.{1,12}?)\1{7,}", re.DOTALL)
_WORD = re.compile(r"\w+|[^\w\s]")
_LATIN_WORD = re.compile(r"\b[a-z]{3,}\b")
_VOWEL = re.compile(r"[aeiouy]")
_LONG_WORD = re.compile(r"[A-Za-z]{60,}")
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
    if _mixes_scripts(prompt, sample):
        return "changes script"
    return None


def loops(prompt: str, response: str) -> bool:
    """Whether `response` falls into repetition that `prompt` does not ask for."""
    return not _ASKS_REPETITION.search(prompt) and _loops(_sample(response))


def _sample(response: str) -> str:
    text = response.strip()
    if len(text) > 2 * _SAMPLE_CHARACTERS:
        return text[:_SAMPLE_CHARACTERS] + "\n" + text[-_SAMPLE_CHARACTERS:]
    return text


def _loops(text: str) -> bool:
    return _repeats_words(text) or _repeats_lines(text) or _repeats_characters(text) or _few_new_phrases(text)


def _repeats_words(text: str) -> bool:
    """One stretch of words, repeated without a break, makes up most of the text."""
    words = _WORD.findall(text.lower())
    for period in range(1, min(40, len(words) // 3) + 1):
        # A single word needs more repeats than a phrase: "no, no, no" is ordinary, a sentence four times is not.
        repeats = 6 if period == 1 else 5 if period == 2 else 4 if period < 6 else 3
        run = longest = 0
        for earlier, later in zip(words, words[period:], strict=False):
            run = run + 1 if earlier == later else 0
            longest = max(longest, run)
        covered = longest + period
        if longest and covered >= repeats * period and covered >= 0.5 * len(words):
            return True
    return False


def _repeats_lines(text: str) -> bool:
    """At least half of the lines, and at least four, are equal apart from numbers and bullets."""
    lines = [re.sub(r"^[\W\d]+|[\W\d]+$", "", line).lower() for line in text.splitlines()]
    # Braces and single keywords repeat in any code.
    lines = [line for line in lines if len(line.split()) >= 2]
    if len(lines) < 4:
        return False
    most = Counter(lines).most_common(1)[0][1]
    return most >= 4 and most >= 0.5 * len(lines)


def _repeats_characters(text: str) -> bool:
    """Runs of a few characters, repeated at least eight times, make up most of the text."""
    dense = "".join(text.split())
    covered = sum(match.end() - match.start() for match in _RUN.finditer(dense))
    return len(dense) >= 12 and covered >= 0.5 * len(dense)


def _few_new_phrases(text: str) -> bool:
    """A long text in which few triples of words are new: a loop with small changes."""
    words = _WORD.findall(re.sub(r"\d+", "0", text.lower()))
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(triples) >= 60 and len(set(triples)) < 0.25 * len(triples)


def _garbled(text: str) -> bool:
    dense = "".join(text.split())
    length = len(dense)
    readable = sum(character.isalnum() or unicodedata.category(character)[0] == "M" for character in dense)
    # A short answer may be an emoji, a sign or a formula.
    if length >= 12 and readable < 0.35 * length:
        return True
    # A single broken character at the end is a token that was cut. Cs is a lone surrogate, Co private use.
    broken = sum(c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") for c in dense)
    if broken >= 2 and broken >= 0.05 * length:
        return True
    mojibake = [len(match) for match in _MOJIBAKE.findall(text)]
    if len(mojibake) >= 3 and sum(mojibake) >= 0.15 * length:
        return True
    if sum(len(word) for word in _LONG_WORD.findall(text)) >= 0.5 * length:
        return True
    # Lower case only: acronyms have no vowels either.
    words = _LATIN_WORD.findall(text)
    return len(words) >= 6 and sum(not _VOWEL.search(word) for word in words) >= 0.4 * len(words)


def _mixes_scripts(prompt: str, text: str) -> bool:
    """At least two scripts each have a good share of the letters, and the prompt gives no reason for it."""
    if _ASKS_SCRIPT.search(prompt):
        return False
    families = _letters_by_script(text)
    total = sum(families.values())
    # Greek letters are ordinary in formulas, and a script of the prompt is ordinary in its answer.
    known = {*_letters_by_script(prompt), "GREEK", "MATHEMATICAL"} - {"LATIN"}
    large = [name for name, count in families.items() if count >= 5 and count >= 0.08 * total and name not in known]
    return len(large) >= 2


def _letters_by_script(text: str) -> Counter[str]:
    """The number of letters of each script; a letter's Unicode name begins with its script."""
    families: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            script = unicodedata.name(character, "UNKNOWN").split(" ", 1)[0].split("-", 1)[0]
            families[_SCRIPT_FAMILIES.get(script, script)] += count
    return families
