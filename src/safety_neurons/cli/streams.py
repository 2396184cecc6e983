"""Standard output and standard error: characters that they cannot encode, closed pipes, and full disks."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, Literal

from safety_neurons.core.errors import SafetyNeuronsError

_HANDLER = "safety-neurons-plain"
# What stands for a character that the encoding lacks: as wide as it, so that tables stay aligned. Others become "?".
_PLAIN = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2500\u2501", "-"),
    **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u2033\u00ab\u00bb", '"'),
    **dict.fromkeys("\u00a0\u2007\u2009\u202f", " "),
    **dict.fromkeys("\u2022\u00d7\u2605\u22c6", "*"),
    **dict.fromkeys("\u2026\u00b7", "."),
    **dict.fromkeys("\u2502\u2503", "|"),
    **{"\u2192": ">", "\u2190": "<"},
}


def prepare_streams() -> None:
    """Let this process print anything, whatever the encoding of its standard streams; open those that are closed.

    The error handlers that PYTHONIOENCODING names stay, but for Python's defaults.
    """
    codecs.register_error(_HANDLER, _plain)
    for name, defaults in (("stdout", {"strict", "surrogateescape"}), ("stderr", {"strict", "backslashreplace"})):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in defaults:
            stream.reconfigure(errors=_HANDLER)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


class Stream:
    """`sys.stdout` or `sys.stderr` as it is at the time, for rich; what cannot be written is no traceback.

    When the reader of a pipe is gone, the process ends quietly, as other programs do. Any other failure of standard
    output is an error; one of standard error could not be told anyone.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._name = name

    def write(self, text: str) -> int:
        """Write to the stream; the number of characters."""
        with self._failures():
            return int(self._stream.write(text))
        return 0

    def flush(self) -> None:
        """Flush the stream."""
        with self._failures():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def _stream(self) -> Any:
        # While bars are drawn, rich puts an object of its own in the place of the stream.
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is left in the buffer would fail again when the process ends.
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise SystemExit(1) from error
            if self._name == "stdout":
                raise SafetyNeuronsError(
                    f"Standard output cannot be written ({error.strerror}). What is finished is kept: run the same "
                    "command again with its output to another place."
                ) from error
