"""Foreign text in a prompt, written so that it cannot pass for the prompt's own instructions.

A request or an answer may try to speak to the model that judges it: close the quotation, imitate the chat template, or
hide signs that reorder the text. What is quoted stands between two marks that follow from a hash of it, so that it
cannot hold its own; signs that are not seen are written out; and what a chat template could take for its own is taken
apart.
"""

import hashlib
import re
import unicodedata

# Enough of an answer to judge it by; a context window is smaller than some answers.
START_CHARACTERS = 12_000
END_CHARACTERS = 4_000

# "<|end|>", "</s>", "<<SYS>>", "<think>" and "[INST]" are single tokens to the models that use them.
_TEMPLATE_OPENS = re.compile("<(?=[|\uff5c/A-Za-z_<\u2581])")
_TEMPLATE_CLOSES = re.compile("(?<=[|\uff5c])>")
_TEMPLATE_NAME = re.compile(r"\[(?=/?[A-Z_]{2,}\])")


def fenced(what: str, text: str) -> str:
    """`text` between two marks that follow from it alone."""
    return quoted(what, text, key_of(text))


def quoted(what: str, text: str, key: str) -> str:
    """`text` between two marks that name it `what`; `key` is that of `key_of` for all that is quoted together."""
    # The key is hexadecimal: no text of ours or of a template holds it by chance.
    inside = harmless(text).replace(key, "[mark]")
    return f"[{what} {key} begins]\n{inside}\n[{what} {key} ends]"


def key_of(*texts: str) -> str:
    """16 characters that follow from the texts, and that who writes the texts cannot put into them."""
    joined = "\0".join(f"{len(text)} {text}" for text in texts)
    return hashlib.sha256(joined.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def harmless(text: str) -> str:
    """`text`, its middle left out where it is very long, with unseen signs written out and template tokens broken."""
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
    """Control signs, bidirectional overrides, zero-width signs, lone surrogates and odd line ends as their number."""
    unseen = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return f"(U+{ord(character):04X})" if unseen and character not in "\n\t" else character
