"""The results of a run's stages: what is kept of them, what is stale, and what a stage adds."""

from collections.abc import Mapping, Set
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import exists
from safety_neurons.core.progress import Listener
from safety_neurons.report.record import StageRecord
from safety_neurons.report.results import SCHEMA, RunResults, read_content
from safety_neurons.runs.folder import RunFolder

if TYPE_CHECKING:
    from safety_neurons.runs.stages import StageResult

# The stage that each section of the results belongs to. An experiment's section goes when that stage's inputs change.
SECTIONS = {
    "neurons": "find",
    "words": "explain",
    "write_share": "explain",
    "vocabulary": "explain",
    "control": "calibrate",
    "clouds": "calibrate",
    "training": "tune",
    "evaluation": "evaluate",
    "dose_response": "find",
    "search": "find",
    "guard": "find",
    "adaptive": "tune",
    "lengths": "tune",
    "auto": "tune",
    "seeds": "tune",
    "left_out": "tune",
}
# Sections that are of no stage: what they need of one they name themselves.
_OF_NO_STAGE = ("audit",)


def kept_results(
    folder: RunFolder, stages: Mapping[str, StageRecord], listener: Listener
) -> tuple[RunResults | None, dict[str, Any]]:
    """The results so far, also as they are in the file; None if the file was lost, which makes all stages undone.

    A damaged file, or one of another run, is set aside: all that it held can be made again.
    """
    empty = current_results({}, set())
    if not exists(folder.results):
        return None, empty
    try:
        found, content = read_content(folder.results, "It is made again.")
    except SafetyNeuronsError as error:
        problem = str(error)
    else:
        known = found.run.stages
        if all(stage in known and known[stage].fingerprint == one.fingerprint for stage, one in stages.items()):
            return found, content
        problem = f"{folder.results} holds the results of another run. It is made again."
    listener.say(
        f"{problem} What was there is now {folder.set_aside(folder.results)}. All stages are done again with what is "
        "cached; repeat the experiments whose results are to be in the report."
    )
    return None, empty


def current_results(kept: Mapping[str, Any], current: Set[str]) -> dict[str, Any]:
    """The kept results of the stages whose inputs are as they were; what is stale is dropped."""
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "run": kept.get("run", {}),
        "rows": [row for row in kept.get("rows", []) if row["stage"] in current],
        "examples": [example for example in kept.get("examples", []) if example["stage"] in current],
    }
    of_stages = [name for name, stage in SECTIONS.items() if stage in current]
    return results | {name: kept[name] for name in (*of_stages, *_OF_NO_STAGE) if name in kept}


def merge_stage(results: dict[str, Any], stage: str, result: "StageResult") -> None:
    """Put what a stage found into the results, in the place of what it found before."""
    for name, new in (("rows", [asdict(row) for row in result.rows]), ("examples", list(result.examples))):
        results[name] = [entry for entry in results[name] if entry["stage"] != stage] + new
    results.update(result.sections or {})
