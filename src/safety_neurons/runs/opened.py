"""Open a run for an experiment, and keep what the experiment finds."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safety_neurons.core.distributed import release_workers
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import write_json
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.prompts import Prompt, load_prompts, tell
from safety_neurons.report.page import write_report
from safety_neurons.report.results import RunResults, read_content
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.folder import RunFolder, merged_settings
from safety_neurons.runs.pipeline import bring_up, read_prompts
from safety_neurons.settings import Settings


@contextlib.contextmanager
def opened(
    path: Path,
    given: Mapping[str, Any] | None,
    listener: Listener | None,
    command: str,
    until: str | None = "find",
    on: Sequence[str | None] = (),
    alone: bool = True,
    uses: Sequence[str] = ("find",),
    is_told: bool = False,
) -> Iterator[RunContext]:
    """A run that has come as far as `until`, with its folder locked.

    The HARMFUL:BENIGN pairs `on` are read before anything else, so that a mistyped name fails early. With `alone`, the
    other processes of torchrun are released; otherwise they wait for what process 0 asks of them. `until`, `uses` and
    `is_told` are those of `bring_up`.

    Raises:
        SafetyNeuronsError: as `run`, or another process works on the folder.
    """
    listener = listener or Silence()
    folder = RunFolder(path)
    with folder.held():
        yield _opened(folder, given or {}, listener, command, until, on, alone, uses, is_told)


def _opened(
    folder: RunFolder,
    given: Mapping[str, Any],
    listener: Listener,
    command: str,
    until: str | None,
    on: Sequence[str | None],
    alone: bool,
    uses: Sequence[str],
    is_told: bool,
) -> RunContext:
    wanted = merged_settings(record.settings if (record := folder.record()) else {}, given)
    named = [name for pair in on if pair is not None for name in _pair(pair, wanted)]
    tell({name: load_prompts(name, wanted.column, wanted.data_dir) for name in named}, listener)
    bring_up(folder.path, given, until, listener, command, uses, is_told)
    if alone:
        # What comes now is not shared among the processes of torchrun.
        release_workers()
    settings = merged_settings(folder.whole_record().settings, given)
    return RunContext(folder, settings, read_prompts(settings), listener, given, command)


def keep_section(run: RunContext, name: str, section: Mapping[str, Any], unused: Collection[str] = ()) -> RunResults:
    """Put a section into the run's results, with the settings that it was made with, and update its page.

    Settings of stages that the experiment runs first are the run's from then on, as `opened` redoes a stage whose
    settings change (the replaced run is kept in the folder `replaced`). All others hold for the experiment alone: the
    record of the run keeps its own. Returns the results.

    Args:
        unused: sections of the settings that played no part.
    """
    folder = run.folder
    settings = {part: value for part, value in run.settings.to_record().items() if part not in unused}
    _, results = read_content(folder.results)
    results[name] = {**section, "settings": settings}
    found = RunResults.of(results)
    write_json(folder.results, results, private=found.shows_responses)
    write_report(found, folder.report)
    return found


def prompts_to_test(context: RunContext, pair: str | None = None) -> dict[str, list[Prompt]]:
    """The prompts to test on: the run's own test split, or another HARMFUL:BENIGN pair of sets.

    Of a set that the run uses, only the test split is taken; of others, everything that the run has not learned from.
    At most `evaluate.prompts` prompts each.

    Raises:
        SafetyNeuronsError: the pair is not two names, a set cannot be read, or nothing of it is left to ask.
    """
    settings = context.settings
    own = context.prompts.values()
    learned = {prompt.text for prompts in own for prompt in prompts if prompt.split != "test"}
    found = {}
    for side, name in zip(("harmful", "benign"), _pair(pair, settings), strict=True):
        prompts = load_prompts(name, settings.column, settings.data_dir)
        if prompts.sha256 in {one.sha256 for one in own}:
            prompts = prompts.split("test")
        fresh = replace(prompts, prompts=tuple(prompt for prompt in prompts if prompt.text not in learned))
        if not len(fresh):
            raise SafetyNeuronsError(
                f"Nothing of {name!r} is left to test on: the run learned from all its prompts. Choose another set."
            )
        found[side] = context.fitting(list(fresh.take(settings.evaluate.prompts)), f"test prompt of {prompts.name}")
    return found


def _pair(pair: str | None, settings: Settings) -> tuple[str, str]:
    """The names of a harmful and a benign set. Default: the run's own."""
    if pair is None:
        return settings.harmful, settings.benign
    harmful, _, benign = pair.rpartition(":")
    if not harmful or not benign:
        raise SafetyNeuronsError(
            f"{pair!r} is not a pair of prompt sets: give a harmful and a benign one, such as jailbreakbench:alpaca."
        )
    return harmful, benign
