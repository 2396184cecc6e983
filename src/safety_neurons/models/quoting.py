"""Untrusted text in a prompt, quoted so that it cannot pass for instructions.

A request or an answer may try to influence the model that judges it: by closing the quotation, imitating the chat
template, or hiding characters that reorder the text. Quoted text stands between marks derived from its hash, so it
cannot contain them; invisible characters are spelled out; template tokens are broken up.
"""

import hashlib
import re
import unicodedata

# Longer texts lose their middle, which is said where it was: some answers exceed the context window.
START_CHARACTERS = 12_000
END_CHARACTERS = 4_000

# "<|end|>", "</s>", "<<SYS>>", "<think>" and "[INST]" are single tokens of the models that use them.
_TEMPLATE_OPENS = re.compile("<(?=[|\uff5c/A-Za-z_<\u2581])")
_TEMPLATE_CLOSES = re.compile("(?<=[|\uff5c])>")
_TEMPLATE_NAME = re.compile(r"\[(?=/?[A-Z_]{2,}\])")
# What looks like one of our marks, with any sign or none, and in any brackets.
_LIKE_A_MARK = re.compile(
    r"[\[({<\uff3b\uff08\u3010\u2045](?=\W{0,12}(?:\w{1,20}\W{1,4}){0,7}?(?:begins|ends|left out)\b)",
    re.IGNORECASE,
)
_LIKE_THE_END = re.compile(r"\bmaterial(?=\W{1,4}(?:ends|is over|stops|begins)\b)", re.IGNORECASE)


def fenced(what: str, text: str) -> str:
    """`text` between two marks derived from it alone."""
    return quoted(what, text, key_of(text))


def quoted(what: str, text: str, key: str) -> str:
    """`text` between two marks with the label `what`; `key` is the `key_of` all texts that are quoted together.

    Where its middle is left out, a third mark says so.
    """
    start, left_out, end = (harmless_part.replace(key, "[mark]") for harmless_part in _parts(text))
    cut = f"\n[{what} {key} {left_out}]\n" if left_out else ""
    return f"[{what} {key} begins]\n{start}{cut}{end}\n[{what} {key} ends]"


def key_of(*texts: str) -> str:
    """16 hexadecimal characters from a hash of the texts, which their author cannot place in them."""
    joined = "\0".join(f"{len(text)} {text}" for text in texts)
    return hashlib.sha256(joined.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def harmless(text: str) -> str:
    """`text` with invisible characters spelled out, and template tokens and what looks like our marks broken up.

    If it is very long, its middle is left out, and a line says so.
    """
    start, left_out, end = _parts(text)
    return f"{start}\n[{left_out}]\n{end}" if left_out else start


def well_formed(text: str) -> str:
    """Text that every file, tokenizer and server takes: halves of surrogate pairs and NULs become U+FFFD."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def encodable(text: str) -> str:
    """The same, or `well_formed` if tokenizers and hashes could not encode it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return well_formed(text)
    return text


def _parts(text: str) -> tuple[str, str, str]:
    """The harmless start, what is left out after it, in words, and the harmless end; only a start if the text fits."""
    text = text.replace("\r\n", "\n")
    left_out = len(text) - START_CHARACTERS - END_CHARACTERS
    if left_out <= 0:
        return _broken_up(text), "", ""
    said = f"{left_out} characters are left out here"
    return _broken_up(text[:START_CHARACTERS]), said, _broken_up(text[-END_CHARACTERS:])


def _broken_up(text: str) -> str:
    text = "".join(_seen(character) for character in text)
    text = _TEMPLATE_CLOSES.sub(" >", _TEMPLATE_OPENS.sub("< ", text))
    text = _LIKE_THE_END.sub(r"\g<0> (quoted)", _LIKE_A_MARK.sub(r"\g<0>quoted: ", text))
    return _TEMPLATE_NAME.sub("[ ", text)


def _seen(character: str) -> str:
    """Code point of a control, bidirectional, zero-width, surrogate or line-separator character; others unchanged."""
    unseen = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return f"(U+{ord(character):04X})" if unseen and character not in "\n\t" else character
