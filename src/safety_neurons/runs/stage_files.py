"""The files that a finished stage left, by their SHA-256 in the run's record: what is damaged or swapped is told."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import file_sha256
from safety_neurons.report.record import StageRecord
from safety_neurons.report.results import RunResults
from safety_neurons.runs.folder import RunFolder


class Lost(NamedTuple):
    """Why a finished stage has to be made again; `kept` if there is something to keep of what it left."""

    what: str
    kept: bool


def left_by(folder: RunFolder, stage: str) -> tuple[Path, ...]:
    """The files that a stage leaves, besides its part of the results."""
    files = {"find": (folder.neurons, folder.directions), "tune": (folder.corpus, folder.delta)}
    return files.get(stage, ())


def hashes(folder: RunFolder, stage: str, results: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256, by name, of the files that a stage has just left, or of the guard that it has just evaluated."""
    guarded = stage == "evaluate" and results.get("evaluation", {}).get("guard") is not None
    return {path.name: file_sha256(path) for path in (*left_by(folder, stage), *[folder.guard] * guarded)}


def lost(folder: RunFolder, stage: str, entry: StageRecord, kept: RunResults | None) -> Lost | None:
    """What is lost of what a finished stage left, if anything.

    Args:
        entry: the stage's, in the run's record.
        kept: the results so far; None if their file is missing.
    """
    if kept is None:
        return Lost(f"{folder.results} is missing", kept=False)
    # They are written first, so they can only be ahead of the record.
    if kept.run.stages.get(stage) != entry:
        return Lost(f"{folder.results} does not hold the results of `{stage}` that belong to this run", kept=True)
    if stage == "report" and not folder.report.exists():
        return Lost(f"{folder.report} is missing", kept=False)
    known = entry.files
    for path in dict.fromkeys([*left_by(folder, stage), *(folder.path / name for name in known)]):
        if (problem := _problem(path, stage, known.get(path.name))) is not None:
            # `guard` keeps the run before it replaces the guard.
            return Lost(problem, kept=path.exists() and path != folder.guard)
    return None


def _problem(path: Path, stage: str, sha256: str | None) -> str | None:
    if not path.exists():
        return f"{path} is missing"
    try:
        found = file_sha256(path)
    except SafetyNeuronsError:
        # It is no regular file, or cannot be read.
        found = ""
    if found == sha256:
        return None
    return f"{path} is not the file that `{stage}` left: it is damaged or was replaced"


def check_left(folder: RunFolder, stage: str) -> str:
    """Check that a stage is finished and left its files as they are; returns what to do about one that is unusable.

    Raises:
        SafetyNeuronsError: the stage is not finished, or a file is missing, damaged or was replaced.
    """
    again = f"safety-neurons {stage} {shlex.quote(str(folder.path))}"
    if not folder.record_file.exists():
        raise SafetyNeuronsError(f"{folder.path} is not the folder of a run: {folder.record_file} does not exist.")
    entry = folder.whole_record().stages.get(stage)
    if entry is None:
        raise SafetyNeuronsError(f"The stage `{stage}` of {folder.path} is not finished. Run it: {again}")
    known = entry.files
    for path in left_by(folder, stage):
        if (problem := _problem(path, stage, known.get(path.name))) is not None:
            raise SafetyNeuronsError(f"{problem}. Make it again: {again}")
    return f"Make it again: {again}"
