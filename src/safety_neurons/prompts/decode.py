"""Text from the bytes of a file: UTF-8, or UTF-16 and UTF-32 where they can be told for sure."""

import codecs
import re
from pathlib import Path

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import read_bytes

# UTF-32 comes first, as its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_FORMATS = (
    (b"PK\x03\x04", "an Excel, OpenDocument, Numbers or ZIP file"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%PDF", "a PDF"),
)
# The signs of UTF-8 that was read as Windows-1252: "Ã©" for é, "â€™" for an apostrophe.
_MOJIBAKE = re.compile("[\u00c2-\u00c3][\u0080-\u00bf\u0152-\u0178\u2013-\u2122]|\u00e2\u20ac[\u0080-\u2122]")
_PASSAGE = 20


def read_text(path: Path, source: str) -> tuple[str, list[str]]:
    """The text of a file without byte-order marks, and what there is to say about its encoding.

    Raises:
        SafetyNeuronsError: the file cannot be read, is not text, or its encoding cannot be told for sure.
    """
    content = read_bytes(path, "Check its permissions, or choose another file.")
    for start, what in _FORMATS:
        if content.startswith(start):
            raise SafetyNeuronsError(
                f"{source} is {what}, not text. Unpack it, or export it as CSV in UTF-8 (in Excel: CSV UTF-8)."
            )
    text, encoding = _decoded(content, path, source)
    # A file that was put together from several has the marks of all.
    text = re.sub("^\ufeff+", "", text, flags=re.MULTILINE)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SafetyNeuronsError(
            f"{source} is not plain text: there is a NUL byte in line {line}. If it should be text, remove the NUL "
            f"bytes with `tr -d '\\000' < '{path.name}' > '{_renamed(path, 'clean')}'`."
        )
    if text[:100].lstrip().casefold().startswith(("<!doctype html", "<html")):
        raise SafetyNeuronsError(f"{source} is a web page. Download the file itself.")
    return text, _remarks(text, encoding)


def _decoded(content: bytes, path: Path, source: str) -> tuple[str, str]:
    mark, encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    if not mark:
        encoding = _wide_without_mark(content) or encoding
    body = content[len(mark) :]
    try:
        return body.decode(encoding), encoding
    except UnicodeDecodeError as error:
        where = body[: error.start].count(b"\n") + 1
        if encoding == "utf-8":
            raise SafetyNeuronsError(_advice(body, error.start, where, path, source)) from error
        raise SafetyNeuronsError(
            f"{source} begins like {encoding[:6].upper()} text, but cannot be read as that (at byte {error.start}). "
            "Save it again as UTF-8 with the program that wrote it."
        ) from error


def _wide_without_mark(content: bytes) -> str | None:
    """UTF-16 without a byte-order mark, which is sure only if most characters are ASCII, and every line end is."""
    sample = content[: len(content) // 2 * 2]
    if b"\0" not in sample or len(content) % 2:
        return None
    for encoding, high in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[::2])):
        low = sample[::2] if encoding == "utf-16-le" else sample[1::2]
        if high.count(0) > len(high) * 0.6 and b"\0" not in low:
            return encoding
    return None


def _advice(body: bytes, start: int, line: int, path: Path, source: str) -> str:
    """What to do about a file that is neither UTF-8 nor marked as something else."""
    problem = f"{source} is not UTF-8 text: invalid byte 0x{body[start]:02x} in line {line}"
    valid = body.decode("utf-8", "ignore")
    well_formed = sum(not letter.isascii() for letter in valid)
    malformed = len(body) - len(valid.encode())
    if well_formed and start >= len(body) - 3:
        return f"{problem}. The file ends within a character, so it is cut off. Copy or download it again."
    if well_formed > malformed:
        return f"{problem}, though most of the file is. Correct that line."
    passage = body[max(0, start - _PASSAGE) : start + _PASSAGE].splitlines()
    around = next((part for part in passage if body[start : start + 1] in part), b"")
    save = "Save it as UTF-8 with the program that wrote it (in Excel: CSV UTF-8)"
    try:
        body.decode("cp1252")
        shown = around.decode("cp1252").strip()
    except UnicodeDecodeError:
        return f"{problem}, and it is not Windows-1252 either. {save}."
    command = f"`iconv -f WINDOWS-1252 -t UTF-8 '{path.name}' > '{_renamed(path, 'utf8')}'`"
    return (
        f"{problem}. {save}; or, if the passage is right as {shown!r}, it is Windows-1252: convert it with {command}."
    )


def _renamed(path: Path, what: str) -> str:
    return f"{path.stem}-{what}{path.suffix}"


def _remarks(text: str, encoding: str) -> list[str]:
    remarks = [] if encoding == "utf-8" else [f"read as {encoding[:6].upper()}"]
    if lost := text.count("\ufffd"):
        remarks.append(f"it has {lost} replacement characters (\ufffd): letters were lost when it was saved")
    if broken := _MOJIBAKE.search(text):
        line = text.count("\n", 0, broken.start()) + 1
        remarks.append(f"line {line} has {broken[0]!r}: letters seem to have been saved in the wrong encoding")
    return remarks
