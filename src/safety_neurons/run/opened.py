"""An existing run, opened by the commands that add to it: its neurons are found first where they are missing."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.progress import Listener, Silence
from safety_neurons.prompts import Prompt, load_prompts
from safety_neurons.report import write_report
from safety_neurons.run.folder import RunFolder, merged_settings
from safety_neurons.run.pipeline import PROMPT_SETS, run
from safety_neurons.run.workplace import Workplace
from safety_neurons.storage import disk_errors, read_json, write_json


@contextlib.contextmanager
def opened(
    path: Path, given: Mapping[str, Any] | None, listener: Listener | None, command: str, until: str = "find"
) -> Iterator[Workplace]:
    """The workplace of a run that has come as far as `until`; nobody else works on the folder meanwhile.

    Raises:
        SafetyNeuronsError: as `run`, or another process works on the folder.
    """
    listener = listener or Silence()
    run(path, given, until=until, listener=listener, command=command)
    folder = RunFolder(path)
    settings = merged_settings(folder.record()["settings"], given or {})
    prompts = {name: load_prompts(getattr(settings, name), settings.column, settings.data_dir) for name in PROMPT_SETS}
    try:
        with disk_errors(path), filelock.FileLock(path / ".lock", timeout=0):
            yield Workplace(folder, settings, prompts, listener)
    except filelock.Timeout as error:
        raise SafetyNeuronsError(
            f"Another process is working on {path}. Wait for it, or choose another folder."
        ) from error


def keep_section(folder: RunFolder, name: str, section: Any) -> dict[str, Any]:
    """Put a section into the run's results and bring its page up to date; returns the results."""
    results: dict[str, Any] = read_json(folder.results)
    results[name] = section
    write_json(folder.results, results)
    write_report(results, folder.report)
    return results


def prompts_to_test(work: Workplace, pair: str | None = None) -> dict[str, list[Prompt]]:
    """The prompts on which something is tested: the run's own test split, or another HARMFUL:BENIGN pair of sets.

    Of a set from which the run learnt, only the test split is taken. A set that could be split but was not learnt from
    is taken whole, up to `evaluate.prompts`.

    Raises:
        SafetyNeuronsError: the pair is not two names, or a set cannot be read.
    """
    settings = work.settings
    names = (settings.harmful, settings.benign) if pair is None else tuple(pair.rsplit(":", 1))
    if len(names) != 2 or not all(names):
        raise SafetyNeuronsError(
            f"{pair!r} is no pair of prompt sets: give a harmful and a benign one, such as jailbreakbench:alpaca."
        )
    learnt = {found.sha256 for found in work.prompts.values()}
    found = {}
    for side, name in zip(("harmful", "benign"), names, strict=True):
        prompts = load_prompts(name, settings.column, settings.data_dir)
        chosen = prompts.split("test") if prompts.sha256 in learnt else prompts
        found[side] = list(chosen.take(settings.evaluate.prompts))
    return found
