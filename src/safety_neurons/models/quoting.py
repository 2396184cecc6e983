"""Untrusted text in a prompt, quoted so that it cannot pass for instructions.

A request or an answer may try to influence the model that judges it: by closing the quotation, imitating the chat
template, or hiding characters that reorder the text. Quoted text stands between marks derived from its hash, so it
cannot contain them; invisible characters are spelled out; template tokens are broken up.
"""

import hashlib
import re
import unicodedata

# Longer texts are shortened: some answers exceed the context window.
START_CHARACTERS = 12_000
END_CHARACTERS = 4_000

# "<|end|>", "</s>", "<<SYS>>", "<think>" and "[INST]" are single tokens of the models that use them.
_TEMPLATE_OPENS = re.compile("<(?=[|\uff5c/A-Za-z_<\u2581])")
_TEMPLATE_CLOSES = re.compile("(?<=[|\uff5c])>")
_TEMPLATE_NAME = re.compile(r"\[(?=/?[A-Z_]{2,}\])")


def fenced(what: str, text: str) -> str:
    """`text` between two marks derived from it alone."""
    return quoted(what, text, key_of(text))


def quoted(what: str, text: str, key: str) -> str:
    """`text` between two marks with the label `what`; `key` is the `key_of` all texts that are quoted together."""
    inside = harmless(text).replace(key, "[mark]")
    return f"[{what} {key} begins]\n{inside}\n[{what} {key} ends]"


def key_of(*texts: str) -> str:
    """16 hexadecimal characters from a hash of the texts, which their author cannot place in them."""
    joined = "\0".join(f"{len(text)} {text}" for text in texts)
    return hashlib.sha256(joined.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def harmless(text: str) -> str:
    """`text` with invisible characters spelled out, template tokens broken up, and the middle cut if very long."""
    text = _bounded(text.replace("\r\n", "\n"))
    text = "".join(_seen(character) for character in text)
    text = _TEMPLATE_CLOSES.sub(" >", _TEMPLATE_OPENS.sub("< ", text))
    return _TEMPLATE_NAME.sub("[ ", text)


def _bounded(text: str) -> str:
    left_out = len(text) - START_CHARACTERS - END_CHARACTERS
    if left_out <= 0:
        return text
    return f"{text[:START_CHARACTERS]}\n(... {left_out} characters are left out here ...)\n{text[-END_CHARACTERS:]}"


def _seen(character: str) -> str:
    """Code point of a control, bidirectional, zero-width, surrogate or line-separator character; others unchanged."""
    unseen = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return f"(U+{ord(character):04X})" if unseen and character not in "\n\t" else character
