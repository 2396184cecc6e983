"""Standard output and standard error: characters that they cannot encode, closed pipes, full disks, and other
people's text: what libraries print, log and warn of quotes names from files and servers."""

import codecs
import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from safety_neurons.core.addresses import without_known_secrets
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.visible import line, spelled_out

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
# Colors, moves of the cursor and clearing (CSI sequences), carriage returns and tabs: what bars and rich write.
_DRAWS = re.compile(r"(\x1b\[[\d;?]*[A-Za-z]|[\r\t])")
_COLOR = re.compile(r"\x1b\[[\d;]*m")


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


@contextlib.contextmanager
def inert_output() -> Iterator[None]:
    """While the context is open, no text moves the cursor or hides on the standard streams, whoever writes it.

    Warnings are one line, and further lines of log messages are indented, so that they cannot pass for ours.
    """
    streams, factory, form = (sys.stdout, sys.stderr), logging.getLogRecordFactory(), warnings.formatwarning
    sys.stdout, sys.stderr = map(_InertStream, streams)
    logging.setLogRecordFactory(_InertRecord)
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"Note: {line(without_known_secrets(message))}\n"
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        logging.setLogRecordFactory(factory)
        warnings.formatwarning = form


class _InertStream:
    """A text stream that writes hidden characters as escapes, but for what draws progress bars and colors."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write to the stream; the number of characters of the text."""
        parts = _DRAWS.split(text)
        # Every other part is one of the sequences.
        self._stream.write("".join(part if number % 2 else spelled_out(part) for number, part in enumerate(parts)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each to the stream."""
        for text in lines:
            self.write(text)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _InertRecord(logging.LogRecord):
    def getMessage(self) -> str:
        """The message without colors."""
        return "\n  ".join(map(line, _COLOR.sub("", super().getMessage()).split("\n")))


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
