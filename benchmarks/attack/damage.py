"""Every file of a run, damaged in every way, before every command that reads it."""

import itertools
import random
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from attack import compared, forked
from attack.outcome import Tally, tracked
from attack.subject import Subject, commands
from builders.damage import PLACES, Damage, contents, written
from builders.tensor_damage import METADATA, RAW
from safety_neurons.core.progress import Listener
from safety_neurons.core.temporary import remove

# Files that a command reads; pages and tables are only written.
KINDS = (".json", ".jsonl", ".safetensors")
# What an error can tell the user to do to the file that it names.
DELETE = re.compile(r"[Dd]elete (it|\S+)|[Rr]emove (it|the (file|link|folder)|\S+)|[Mm]ove (it|\S+) away")
COPY = re.compile(r"whole copy|copy of (this|it|the)|again from its source")
COMMAND = re.compile(r"safety-neurons ((?:[a-z-]+ )*[a-z-]+(?: --?[\w.-]+| [\w./:=-]+)*)")
STAGE = re.compile(r"[Rr]un `([a-z-]+)` (?:again|first)")
AGAIN = re.compile(r"run (?:it|the same command|again)|[Rr]epeat", re.IGNORECASE)
# A folder that cannot be used at all, by this version; there is nothing to follow.
ELSEWHERE = re.compile(r"choose another folder")
# How often an advice leads to another one.
STEPS = 3


def damage(subject: Subject, work: Path, share: float, seed: int, listener: Listener) -> list[Tally]:
    """The damage matrix: one row for each file. `share` is the part of it that is tried, drawn by the seed."""
    draw = random.Random(seed)
    tallies = []
    for file in sorted(path for path in subject.folder.iterdir() if path.suffix in KINDS and path.is_file()):
        tally = Tally(f"damaged {file.name}")
        every = itertools.product(ways(file, seed), commands(work, work, ()))
        chosen = [case for case in every if draw.random() < share]
        for way, command in tracked(tally, chosen, listener):
            _try(subject, work, tally, file.name, way, command)
        tallies.append(tally)
    return tallies


def ways(file: Path, seed: int) -> Iterator[Damage]:
    """All kinds of damage to a file."""
    good = file.read_bytes()
    if file.suffix == ".safetensors":
        yield from (Damage(name, change) for name, change in (RAW | METADATA).items())
        return
    if file.suffix == ".jsonl":
        first, *others = good.splitlines(keepends=True)
        rest = b"".join(others)
        yield from (
            Damage(name, written(found + b"\n" + rest)) for name, found in contents(first.rstrip(b"\n"), seed).items()
        )
    else:
        yield from (Damage(name, written(found)) for name, found in contents(good, seed).items())
    yield from PLACES


def _try(subject: Subject, work: Path, tally: Tally, name: str, way: Damage, command: str) -> None:
    run, out = subject.copy(work / "run"), work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    way.to(run / name)
    arguments = commands(run, out, subject.options)[command]
    where = f"{name}: {way.name}, {command}"
    ended = forked.run(arguments)
    if _harmed(tally, where, ended):
        return
    if ended.status != 0 and name not in ended.output:
        tally.note("unnamed", where, ended.output)
        return
    for _ in range(STEPS):
        if ended.status == 0:
            break
        if ELSEWHERE.search(ended.output):
            return
        if not follow(ended.output, run, subject, name):
            tally.note("dead end", where, ended.output)
            return
        shutil.rmtree(out / "merged", ignore_errors=True)
        ended = forked.run(arguments)
        if _harmed(tally, where, ended):
            return
    else:
        tally.note("dead end", where, ended.output)
    for gone in compared.lost(subject.folder, run, name):
        tally.note("lost", where, gone)
    if command == "run":
        for place in compared.differences(compared.results(subject.folder), compared.results(run)):
            tally.note("differs", where, place)
            break


def _harmed(tally: Tally, where: str, ended: forked.Ended) -> bool:
    if ended.status is None:
        tally.note("hang", where, ended.output)
    elif ended.crashed:
        tally.note("traceback", where, ended.output)
    return ended.status is None or ended.crashed


def follow(output: str, run: Path, subject: Subject, name: str) -> bool:
    """Do what an error message says, to the letter; false if it says nothing that can be done."""
    said = " ".join(output.rpartition("Error:")[2].split())
    done = False
    if DELETE.search(said):
        remove(run / name)
        done = True
    elif COPY.search(said):
        remove(run / name)
        shutil.copy2(subject.folder / name, run / name)
        done = True
    stages = [(stage, str(run)) for stage in STAGE.findall(said)]
    for arguments in [*(tuple(shlex.split(one)) for one in COMMAND.findall(said.replace("RUN", str(run)))), *stages]:
        forked.run(arguments)
        done = True
    return done or AGAIN.search(said) is not None
