"""An existing run, opened by the commands that add to it: its neurons are found first where they are missing."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, read_json, write_json
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.prompts import Prompt, load_prompts
from safety_neurons.report import RunResults
from safety_neurons.report.page import write_report
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.folder import RunFolder, merged_settings
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.plan import PROMPT_SETS
from safety_neurons.runs.workers import release_workers
from safety_neurons.settings import Settings


@contextlib.contextmanager
def opened(
    path: Path,
    given: Mapping[str, Any] | None,
    listener: Listener | None,
    command: str,
    until: str = "find",
    on: Sequence[str | None] = (),
    alone: bool = True,
) -> Iterator[RunContext]:
    """The workplace of a run that has come as far as `until`; nobody else works on the folder meanwhile.

    The HARMFUL:BENIGN pairs `on` are read before anything else, so that nobody waits for a mistyped name.
    Where process 0 does not go on `alone`, the others wait for what it asks of them.

    Raises:
        SafetyNeuronsError: as `run`, or another process works on the folder.
    """
    listener = listener or Silence()
    folder = RunFolder(path)
    wanted = merged_settings(folder.record().get("settings", {}), given or {})
    for pair in on:
        for name in _pair(pair, wanted):
            load_prompts(name, wanted.column, wanted.data_dir)
    run(path, given, until=until, listener=listener, command=command)
    if alone:
        # What comes now is not shared among the processes of torchrun.
        release_workers()
    settings = merged_settings(folder.record()["settings"], given or {})
    prompts = {name: load_prompts(getattr(settings, name), settings.column, settings.data_dir) for name in PROMPT_SETS}
    try:
        with disk_errors(path), filelock.FileLock(path / ".lock", timeout=0):
            yield RunContext(folder, settings, prompts, listener)
    except filelock.Timeout as error:
        raise SafetyNeuronsError(
            f"Another process is working on {path}. Wait for it, or choose another folder."
        ) from error


def keep_section(folder: RunFolder, name: str, section: Any) -> dict[str, Any]:
    """Put a section into the run's results and bring its page up to date; returns the results."""
    results: dict[str, Any] = read_json(folder.results)
    results[name] = section
    write_json(folder.results, results)
    write_report(RunResults.of(results), folder.report)
    return results


def prompts_to_test(work: RunContext, pair: str | None = None) -> dict[str, list[Prompt]]:
    """The prompts on which something is tested: the run's own test split, or another HARMFUL:BENIGN pair of sets.

    Of a set from which a run may learn, only the test split is taken; another is taken whole, without the prompts from
    which the run may have learnt. Of either, at most `evaluate.prompts`.

    Raises:
        SafetyNeuronsError: the pair is not two names, a set cannot be read, or nothing of it is left to ask.
    """
    settings = work.settings
    own = work.prompts.values()
    learnt = {prompt.text for prompts in own for prompt in prompts if prompt.split != "test"}
    found = {}
    for side, name in zip(("harmful", "benign"), _pair(pair, settings), strict=True):
        prompts = load_prompts(name, settings.column, settings.data_dir)
        if prompts.sha256 in {one.sha256 for one in own}:
            prompts = prompts.split("test")
        fresh = replace(prompts, prompts=tuple(prompt for prompt in prompts if prompt.text not in learnt))
        if not len(fresh):
            raise SafetyNeuronsError(f"Nothing of {name!r} is left to test on: the run learnt from all its prompts.")
        found[side] = list(fresh.take(settings.evaluate.prompts))
    return found


def _pair(pair: str | None, settings: Settings) -> tuple[str, str]:
    """The names of a harmful and a benign set; the run's own where no pair is given."""
    if pair is None:
        return settings.harmful, settings.benign
    harmful, _, benign = pair.rpartition(":")
    if not harmful or not benign:
        raise SafetyNeuronsError(
            f"{pair!r} is no pair of prompt sets: give a harmful and a benign one, such as jailbreakbench:alpaca."
        )
    return harmful, benign
