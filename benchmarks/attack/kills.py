"""Commands that are killed at random moments, started twice at once, or run out of disk."""

import itertools
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from attack import compared, forked
from attack.outcome import Tally
from attack.subject import Subject, commands

KILLED = ("run", "evaluate", "guard", "tune --auto", "merge", "report")
# Of a command on a real model that nobody stops.
SECONDS = 3600.0
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}


def kill(subject: Subject, work: Path, kills: int, seed: int) -> list[Tally]:
    """Kill each command again and again on one folder; it has to end as one that nobody disturbed."""
    tallies = []
    for name, (said, number) in itertools.product(KILLED, SIGNALS.items()):
        tally = Tally(f"{name}, {said}")
        draw = random.Random(f"{seed} {name} {said}").random
        calm, disturbed = (_begun(subject, work / part, name) for part in ("calm", "disturbed"))
        whole = forked.run(commands(calm, calm.parent, subject.options)[name], seconds=SECONDS)
        arguments = commands(disturbed, disturbed.parent, subject.options)[name]
        # On average each start gets on by its share, and a kill comes at any moment of it.
        longest = 2 * whole.seconds / max(1, kills) + 0.3
        for ended in forked.killed_on_the_way(arguments, kills, longest, draw, number, SECONDS):
            tally.tried += 1
            # One that was stopped after its last step has left the whole folder.
            whole_already = name == "merge" and ended is not None and "exists already" in ended.output
            if ended is not None and (ended.crashed or ended.status != 0) and not whole_already:
                tally.note("hang" if ended.status is None else "traceback", name, ended.output)
        _compare(tally, name, calm.parent, disturbed.parent)
        tallies.append(tally)
    return tallies


def _begun(subject: Subject, folder: Path, name: str) -> Path:
    """A run for the command to work on: as far as it came before the command, or none for `run` itself."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = folder / "run"
    if name in ("merge", "report"):
        subject.copy(run)
    elif name != "run":
        before = "find" if name in ("guard", "tune --auto") else "tune"
        ended = forked.run((before, str(run), *subject.options), seconds=SECONDS)
        assert ended.status == 0, ended.output
    return run


def _compare(tally: Tally, name: str, calm: Path, disturbed: Path) -> None:
    for place in compared.differences(compared.results(calm / "run"), compared.results(disturbed / "run")):
        tally.note("differs", name, place)
    left = [path.name for path in disturbed.rglob("*") if ".partial" in path.name]
    if left:
        tally.note("lost", name, f"left behind: {left}")
    merged = [sorted(_contents(folder / "merged").items()) for folder in (calm, disturbed)]
    if merged[0] != merged[1]:
        tally.note("differs", name, "the merged folders differ")


def _contents(folder: Path) -> dict[str, bytes]:
    # The card says when and how it was made.
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def together(subject: Subject, work: Path, tries: int, count: int) -> Tally:
    """Start the same run several times at once: one works, the others are refused and change nothing."""
    tally = Tally(f"run, {count} processes at once")
    for number in range(tries):
        run = work / "together" / "run"
        shutil.rmtree(run.parent, ignore_errors=True)
        run.parent.mkdir(parents=True)
        arguments = ("find", str(run), *subject.options)
        started = [forked.start(arguments) for _ in range(count)]
        ended = [one.end() for one in started]
        tally.tried += 1
        refused = [one for one in ended if one.status == 2 and "Another process is working on" in one.output]
        worked = [one for one in ended if one.status == 0]
        # One that comes when the work is done finds nothing to do.
        made = [one for one in worked if "nothing to do" not in one.output and "Done already" not in one.output]
        if len(made) != 1 or len(refused) + len(worked) != count:
            tally.note("entered", f"try {number}", "\n".join(f"{one.status}: {one.output[-300:]}" for one in ended))
        if compared.results(run) is None:
            tally.note("lost", f"try {number}", "the run that worked has no results")
    return tally


def full_disk(subject: Subject, work: Path, sizes: Sequence[int], mounted: Callable[[Path, int], bool]) -> Tally:
    """Run on disks that are too small, then on ones that are large enough: nothing is lost, and the run ends."""
    tally = Tally("run, full disk")
    expected: object = None
    for size in sizes:
        disk = work / "disk"
        disk.mkdir(parents=True, exist_ok=True)
        if not mounted(disk, size):
            return tally
        tally.tried += 1
        arguments = ("run", "--out", str(disk / "run"), *subject.options)
        ended = forked.run(arguments)
        if ended.crashed or ended.status is None:
            tally.note("traceback", f"{size:,} bytes", ended.output)
        elif ended.status != 0 and "No space left" not in ended.output:
            tally.note("unnamed", f"{size:,} bytes", ended.output)
        mounted(disk, 64 << 20)
        again = forked.run(arguments)
        if again.status != 0:
            tally.note("dead end", f"{size:,} bytes", again.output)
        found = compared.results(disk / "run")
        expected = expected or found
        for place in compared.differences(expected, found):
            tally.note("differs", f"{size:,} bytes", place)
        mounted(disk, 0)
    return tally
