"""How much longer a tokenizer can make a text, read from its tokenizer.json."""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.hub import GET_AGAIN

# How much longer a tokenizer may make a text that it reads or writes: ALBERT's can make it 1,300 times as long.
_MOST_GROWTH = 1 << 12
# The most characters that each type makes of one. The longest of compatibility forms is that of U+FDFA.
_TYPES = {
    **{"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 2, "BertNormalizer": 12},
    **{"ByteLevel": 4, "Metaspace": 2, "WordPiece": 2, "CTC": 2, "BPEDecoder": 2},
}
# A regular expression that never matches an empty string: characters and classes in a row, none of them optional.
_NEVER_EMPTY = re.compile(r"((\\[sSdDwWnrt]|[\w '\"`,;:!<>/-]|\[(\\.|[^\]\\\[&])+\])(\+|\{[1-9][0-9]*(,[0-9]*)?\})?)+")


def check_growth(path: Path, tokenizer: Mapping[str, Any]) -> None:
    """Check that the parts of a tokenizer, one after another, keep texts at a size that can be held in memory.

    Args:
        path: the tokenizer.json, for the message.
        tokenizer: its content.

    Raises:
        SafetyNeuronsError: a text can become more than 4,096 times as long, or a map of characters is broken.
    """
    for parts in (("normalizer", "pre_tokenizer"), ("decoder",)):
        growth = 1.0
        for part in parts:
            growth *= _growth(path, tokenizer.get(part))
            if growth > _MOST_GROWTH:
                raise SafetyNeuronsError(
                    f"{path} has a {part} that makes a text more than {_MOST_GROWTH:,} times as long. {GET_AGAIN}"
                )


def _growth(path: Path, part: Any) -> float:
    """How many characters a normalizer, pre-tokenizer or decoder makes of one at most; members multiply."""
    growth, pending = 1.0, [part]
    while pending:
        each = pending.pop()
        if isinstance(each, list):
            pending += each
        elif isinstance(each, Mapping):
            pending += [inside for inside in each.values() if isinstance(inside, dict | list)]
            growth *= _own_growth(path, each)
    return growth


def _own_growth(path: Path, part: Mapping[str, Any]) -> float:
    kind = part.get("type")
    if kind == "Replace" and isinstance(content := part.get("content"), str):
        pattern = part.get("pattern")
        text, regex = (pattern.get(name) if isinstance(pattern, Mapping) else None for name in ("String", "Regex"))
        if isinstance(text, str) and text:
            return max(1, len(content) / len(text))
        # What matches an empty string adds the content between any two characters.
        never_empty = isinstance(regex, str) and _NEVER_EMPTY.fullmatch(regex)
        return max(1, len(content)) if never_empty else 1 + len(content)
    if kind == "Prepend" and isinstance(added := part.get("prepend"), str):
        return 1 + len(added)
    if kind == "Precompiled" and isinstance(charsmap := part.get("precompiled_charsmap"), str):
        return _longest(path, charsmap)
    return _TYPES.get(kind, 1) if isinstance(kind, str) else 1


def _longest(path: Path, charsmap: str) -> int:
    """The characters of the longest string that a map of SentencePiece puts in place of a character.

    The map is a trie, after its size as four bytes, and then these strings, each with a NUL byte at its end.
    """
    try:
        content = base64.b64decode(charsmap)
    except (binascii.Error, ValueError) as error:
        raise SafetyNeuronsError(
            f"{path} has a Precompiled normalizer whose map is not base64 ({error}). {GET_AGAIN}"
        ) from error
    strings = content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")
    return max(1, *(len(each.decode("utf-8", errors="replace")) for each in strings))
