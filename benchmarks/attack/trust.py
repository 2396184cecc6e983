"""Run folders of a stranger that try to run code, to reach a server, or to write outside of themselves."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attack import forked
from attack.outcome import Tally, tracked
from attack.subject import Subject, commands
from safety_neurons.core.progress import Listener

# Code that shows that it ran, and does nothing else.
CODE = "from pathlib import Path\nPath({marker!r}).write_text('ran')\n"
PRECIOUS = b"This file is not the run's."


def foreign_runs(subject: Subject, work: Path, listener: Listener) -> Tally:
    """Every command on run folders whose record asks for code to be run."""
    tally = Tally("run folders that name code")
    marker = work / "ran"
    cases = list(itertools.product(_changes(work, marker).items(), commands(work, work, ())))
    for (name, change), command in tracked(tally, cases, listener):
        run = subject.copy(work / "run")
        shutil.rmtree(work / "out", ignore_errors=True)
        (work / "out").mkdir()
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        change(record)
        (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
        # Without options, so that what the record says is all that there is.
        arguments = commands(run, work / "out", ())[command]
        ended = forked.run(arguments)
        if marker.exists():
            tally.note("ran code", f"{name}, {command}", ended.output)
            marker.unlink()
        if ended.crashed:
            tally.note("traceback", f"{name}, {command}", ended.output)
    return tally


def _changes(work: Path, marker: Path) -> dict[str, Callable[[dict[str, Any]], None]]:
    """What each stranger wrote into run.json, by name."""
    work.mkdir(parents=True, exist_ok=True)
    code = work / "evil.py"
    code.write_text(CODE.format(marker=str(marker)), encoding="utf-8")

    def model(record: dict[str, Any]) -> None:
        folder = work / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(record["settings"]["model"], folder)
        shutil.copy(code, folder / "modeling_evil.py")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kinds = ("AutoConfig", "AutoModelForCausalLM")
        config |= {"model_type": "evil", "auto_map": dict.fromkeys(kinds, "modeling_evil.Evil")}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        record["settings"] |= {"model": str(folder), "trust_remote_code": True}
        record["model"]["name"] = str(folder)

    def named(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
        def change(record: dict[str, Any]) -> None:
            section = record["settings"]
            for part in path[:-1]:
                section = section[part]
            section[path[-1]] = value
            # A stage that counts as done is not looked at.
            record["stages"] = {}

        return change

    tasks = work / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "utils.py").write_text(code.read_text(encoding="utf-8") + "def f(doc):\n    return ''\n", encoding="utf-8")
    (tasks / "evil.yaml").write_text(
        "task: evil\ndataset_path: json\noutput_type: generate_until\ndoc_to_text: !function utils.f\n",
        encoding="utf-8",
    )

    def lm_eval(record: dict[str, Any]) -> None:
        record["settings"]["evaluate"] |= {"tasks": ["evil"], "task_folder": str(tasks), "task_limit": 1}
        record["stages"] = {}

    plugin = f"{code}:EVIL"
    return {
        "a model with code, trusted": model,
        "a score in a file": named("find", "score", value=plugin),
        "an attack in a file": named("evaluate", "attacks", value=[plugin]),
        "a defense in a file": named("evaluate", "defenses", value=[plugin]),
        "a judge in a file": named("evaluate", "judge", value=plugin),
        "judges in a file": named("evaluate", "judges", value=[plugin]),
        "lm-eval tasks in a folder": lm_eval,
    }


def links(subject: Subject, work: Path, listener: Listener) -> Tally:
    """Every command on run folders in which a file is a link, a pipe, a device or a folder."""
    tally = Tally("links, pipes and devices in a run folder")
    precious = work / "precious"
    cases = list(itertools.product(_places(subject), commands(work, work, ())))
    for (name, place), command in tracked(tally, cases, listener):
        run = subject.copy(work / "run")
        shutil.rmtree(work / "out", ignore_errors=True)
        (work / "out").mkdir()
        precious.write_bytes(PRECIOUS)
        place(run, precious)
        before = precious.read_bytes()
        ended = forked.run(commands(run, work / "out", subject.options)[command])
        if precious.read_bytes() != before:
            tally.note("lost", f"{name}, {command}", ended.output)
        if ended.status is None:
            tally.note("hang", f"{name}, {command}", ended.output)
        elif ended.crashed:
            tally.note("traceback", f"{name}, {command}", ended.output)
    return tally


def _places(subject: Subject) -> Iterator[tuple[str, Callable[[Path, Path], None]]]:
    files = sorted(path.name for path in subject.folder.iterdir() if path.is_file())
    for name in files:

        def linked(run: Path, precious: Path, name: str = name) -> None:
            # A whole line and half of one: a cache would be cut off, and go on here.
            precious.write_bytes((run / name).read_bytes() + b"half")
            (run / name).unlink()
            (run / name).symlink_to(precious)

        def pipe(run: Path, _: Path, name: str = name) -> None:
            (run / name).unlink()
            os.mkfifo(run / name)

        def device(run: Path, _: Path, name: str = name) -> None:
            (run / name).unlink()
            (run / name).symlink_to("/dev/zero")

        def sparse(run: Path, _: Path, name: str = name) -> None:
            os.truncate(run / name, 1 << 40)

        kinds = {"a link": linked, "a pipe": pipe, "/dev/zero": device, "a sparse terabyte": sparse}
        yield from ((f"{name} is {what}", change) for what, change in kinds.items())
