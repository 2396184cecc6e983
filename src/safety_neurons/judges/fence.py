"""Texts that a judging model is to read, and not to obey."""

import hashlib
import re
import unicodedata

_MARK = re.compile(r"={3,}(?=\s*(?:begin|end)\b)", re.IGNORECASE)
# What chat templates begin and end turns with; a tokenizer reads it inside a text, too.
_CONTROL_TOKEN = re.compile(
    r"<(?=[|\uff5c])|<(?=<\s*/?\s*sys\s*>>)|\[(?=/?(?:inst|system_prompt|available_tools|tool_calls|tool_results)\])"
    r"|<(?=/?(?:s|bos|eos|pad|unk|mask|start_of_turn|end_of_turn|think|tool_call|tool_response)>)",
    re.IGNORECASE,
)
# Joiners belong to emoji and to several scripts.
_KEPT = "\n\t\u200c\u200d"


def fenced(text: str) -> str:
    """The text between two marks that name a hash of it, which it cannot hold itself.

    The same text is always fenced the same. Marks and control tokens of chat templates in it are broken by a backslash;
    what is not seen or changes the order of what is (control characters, bidi overrides, Unicode tags, lone
    surrogates) is written as an escape such as \\u202e.
    """
    name = hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:12]
    inside = "".join(map(_visible, text.replace("\r\n", "\n")))
    inside = _CONTROL_TOKEN.sub(lambda found: f"{found[0]}\\", _MARK.sub(lambda found: f"\\{found[0]}", inside))
    return f"=== begin {name} ===\n{inside}\n=== end {name} ==="


def _visible(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
