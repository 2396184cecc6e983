"""A file of results, one JSON line each, that are found again by a key: what is in it is never computed twice."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from safety_neurons.storage import append_line, read_lines


@dataclass
class KeptLines:
    """The file, and its lines by key. Without a path nothing is written."""

    path: Path | None
    by_key: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """What an earlier, perhaps killed, process left there."""
        return cls(path, {} if path is None else {line["key"]: line for line in read_lines(path)})

    def add(self, key: str, line: Mapping[str, Any]) -> dict[str, Any]:
        """Append a line as soon as it is known."""
        kept = {"key": key, **line}
        if self.path is not None:
            append_line(self.path, kept)
        self.by_key[key] = kept
        return kept
