"""The run folder: what is in it, which stages are done, and whether it may be used."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safety_neurons.core import plugins
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import read_json, write_json
from safety_neurons.settings import Settings

SCHEMA = 2


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's artifacts, and the record (`run.json`) of what was done."""

    path: Path

    @property
    def record_file(self) -> Path:
        return self.path / "run.json"

    @property
    def neurons(self) -> Path:
        return self.path / "neurons.safetensors"

    @property
    def directions(self) -> Path:
        return self.path / "directions.safetensors"

    @property
    def corpus(self) -> Path:
        return self.path / "corpus.jsonl"

    @property
    def delta(self) -> Path:
        return self.path / "delta.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Of a training that is not finished; hidden, because it is gone when it is."""
        return self.path / ".checkpoint.safetensors"

    @property
    def responses(self) -> Path:
        return self.path / "responses.jsonl"

    @property
    def judgments(self) -> Path:
        return self.path / "judgments.jsonl"

    @property
    def measurements(self) -> Path:
        return self.path / "measurements.jsonl"

    @property
    def guard(self) -> Path:
        return self.path / "guard.safetensors"

    @property
    def trials(self) -> Path:
        return self.path / "trials.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def record(self) -> dict[str, Any]:
        """What is known of the run so far; empty for a new folder.

        Raises:
            SafetyNeuronsError: the folder holds other things than a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise SafetyNeuronsError(f"{self.path} is a file. Choose a folder for the run with --out.")
        if self.record_file.exists():
            record = read_json(self.record_file)
            if not isinstance(record, dict) or record.get("schema") != SCHEMA:
                raise SafetyNeuronsError(
                    f"{self.record_file} is not a record of this version (schema {SCHEMA}). Choose another --out."
                )
            return record
        if self.path.exists() and any(entry.name != ".lock" for entry in self.path.iterdir()):
            raise SafetyNeuronsError(
                f"{self.path} is not empty and holds no run. Choose another --out, so that nothing of yours is lost."
            )
        return {}

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace the record in one step."""
        write_json(self.record_file, {"schema": SCHEMA, **record})


def merged_settings(stored: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """The folder's own settings, overridden by what was given now.

    Raises:
        SafetyNeuronsError: a value is not allowed.
    """
    values = {name: value for name, value in stored.items() if name in Settings.model_fields}
    plugins.trust(given, values)
    return Settings.checked(overridden(values, given))


def overridden(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `given` over them; sections are merged, everything else is replaced."""
    merged = dict(values)
    for name, value in given.items():
        old = merged.get(name)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[name] = {**old, **value} if both else value  # type: ignore[dict-item]
    return merged
