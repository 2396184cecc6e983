"""The header of a GGUF file, read with bounds: its reader in the gguf package believes every count and length."""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from safety_neurons.core.files import MOST_BYTES_OF_WEIGHTS, open_regular
from safety_neurons.models.stored_sizes import StoredSizes

ADVICE = "Check that the download is complete."
# Vocabularies have some hundred thousand tokens, and as many merges.
_MOST_ITEMS, _MOST_CHARACTERS = 1 << 23, 1 << 24
_MOST_DIMENSIONS = 8
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class HeaderError(ValueError):
    """A GGUF file does not hold what its header says."""


def read_header(path: Path) -> tuple[StoredSizes, Mapping[str, int]]:
    """The sizes of the tensors in a GGUF file, and the integers among its metadata.

    Raises:
        HeaderError: a count, length or size in it goes beyond the file.
        SafetyNeuronsError: the file cannot be read, or is not a regular one.
    """
    with open_regular(path, ADVICE, MOST_BYTES_OF_WEIGHTS) as file:
        return _Header(file, path.stat().st_size).read()


class _Header:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.order = file, size, "<"

    def read(self) -> tuple[StoredSizes, Mapping[str, int]]:
        if self.file.read(4) != b"GGUF":
            raise HeaderError("it does not begin with GGUF")
        version = self.number("I")
        if version & 0xFFFF == 0:
            # Written on a machine of the other byte order.
            self.order = ">"
        tensors, fields = self.number("Q"), self.number("Q")
        self.check(tensors, 24, "tensors")
        self.check(fields, 13, "fields")
        integers = {}
        for _ in range(fields):
            name = self.text(1 << 16)
            value = self.value(self.number("I"), depth=0)
            if isinstance(value, int):
                integers[name] = value
        values = largest = 0
        for _ in range(tensors):
            name = self.text(1 << 16)
            if (dimensions := self.number("I")) > _MOST_DIMENSIONS:
                raise HeaderError(f"the tensor {name[:100]!r} has {dimensions:,} dimensions")
            shape = [self.number("Q") for _ in range(dimensions)]
            self.number("I")
            offset, count = self.number("Q"), math.prod(shape)
            # No format has less than one bit a value.
            if offset > self.size or count > 8 * self.size:
                raise HeaderError(f"the tensor {name[:100]!r} of {count:,} values goes beyond the end of the file")
            values, largest = values + count, max(largest, *shape, 1)
        return StoredSizes(tensors, values, self.size, largest), integers

    def value(self, kind: int, depth: int) -> int | None:
        """Read past a value; an integer is returned."""
        if kind == _STRING:
            self.text(_MOST_CHARACTERS)
        elif kind == _ARRAY:
            inside, count = self.number("I"), self.number("Q")
            width = struct.calcsize(_FORMATS.get(inside, "Q"))
            self.check(count, width, "items of an array")
            if count > _MOST_ITEMS or depth > 2:
                raise HeaderError(f"it has an array of {count:,} items")
            if inside in _FORMATS:
                self.file.seek(count * width, 1)
            else:
                for _ in range(count):
                    self.value(inside, depth + 1)
        elif kind in _FORMATS:
            found = self.number(_FORMATS[kind])
            return found if isinstance(found, int) and not isinstance(found, bool) else None
        else:
            raise HeaderError(f"it has a value of the unknown type {kind}")
        return None

    def number(self, form: str) -> int:
        content = self.file.read(struct.calcsize(form))
        if len(content) < struct.calcsize(form):
            raise HeaderError("it ends within its header")
        found: int = struct.unpack(self.order + form, content)[0]
        return found

    def text(self, most: int) -> str:
        length = self.check(self.number("Q"), 1, "characters of a text")
        if length > most:
            raise HeaderError(f"it has a text of {length:,} characters")
        return self.file.read(length).decode(errors="replace")

    def check(self, count: int, width: int, what: str) -> int:
        if count * width > self.size - self.file.tell():
            raise HeaderError(f"its header says that there are {count:,} {what}, and the file has {self.size:,} bytes")
        return count
