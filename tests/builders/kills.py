"""Work in processes of its own that is killed with SIGKILL: after so many changes to files, not after so much time."""

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import safe_open

from safety_neurons.core.errors import SafetyNeuronsError

# What Python reports before it changes files; "open" is another matter.
CHANGES = {
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.chmod", "os.symlink"),
    *("shutil.copyfile", "shutil.rmtree"),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NEVER = 1 << 40


class Changes:
    """Counts the changes that this process makes below a folder, and kills it before one of them.

    Of a line that is appended, half is written before the kill.
    """

    def __init__(self, folder: Path, kill_before: int) -> None:
        self.below = f"{folder.resolve()}{os.sep}"
        self.kill_before = kill_before
        self.count = 0
        self._write = os.write

    def watch(self) -> None:
        """Begin to count; there is no end to it."""
        os.write = self._write_half
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES)
        if changes and any(self._is_below(argument) for argument in arguments[:2]):
            self._one_more()

    def _is_below(self, path: Any) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(path)).startswith(self.below)

    def _one_more(self) -> None:
        self.count += 1
        if self.count >= self.kill_before:
            os.kill(os.getpid(), signal.SIGKILL)

    def _write_half(self, handle: int, content: Any) -> int:
        if os.readlink(f"/proc/self/fd/{handle}").startswith(self.below):
            if self.count + 1 >= self.kill_before:
                self._write(handle, bytes(content)[: len(content) // 2])
            self._one_more()
        return self._write(handle, content)


class Child:
    """Work in a process of its own that is forked from this one."""

    def __init__(self, work: Callable[[], object]) -> None:
        receiver, sender = os.pipe()
        self.number = os.fork()
        if self.number == 0:
            os.close(receiver)
            _in_child(work, sender)
        os.close(sender)
        self._receiver = receiver
        self._status: int | None = None

    def has_ended(self) -> bool:
        if self._status is None:
            number, status = os.waitpid(self.number, os.WNOHANG)
            self._status = status if number else None
        return self._status is not None

    def end(self) -> tuple[int, str]:
        """Wait for the end: the exit status, negative for a signal, and what the work returned or raised."""
        with os.fdopen(self._receiver, "rb") as file:
            said = file.read().decode()
        if self._status is None:
            self._status = os.waitpid(self.number, 0)[1]
        return os.waitstatus_to_exitcode(self._status), said


def _in_child(work: Callable[[], object], sender: int) -> NoReturn:
    """Status 2 for an error that the user is told, as of the command line, and 1 for any other."""
    status = 1
    try:
        torch.set_num_threads(1)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        said = ""
        try:
            said = str(work())
            status = 0
        except SafetyNeuronsError as error:
            said, status = str(error), 2
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        os.write(sender, said.encode())
    except BaseException:
        os.write(sender, traceback.format_exc().encode())
        raise
    finally:
        os._exit(status)


def changes_of(work: Callable[[], object], folder: Path, kill_before: int = NEVER) -> int | None:
    """The number of changes that `work` makes below a folder in a process of its own; None if that was killed."""

    def watched() -> int:
        changes = Changes(folder, kill_before)
        changes.watch()
        work()
        return changes.count

    status, said = Child(watched).end()
    if status == -signal.SIGKILL:
        return None
    assert status == 0, said
    return int(said)


def kill_often(work: Callable[[], object], folder: Path, within: int, kills: int, seed: int = 0) -> int:
    """Start the work again and again, and kill it at a random moment each time; the last time it is let be.

    Args:
        within: the number of changes that a start may make before it is killed.
        kills: of them, fewer where a start ends before.

    Returns:
        How often it was killed.
    """
    chance = random.Random(seed)
    for killed in range(kills):
        if changes_of(work, folder, chance.randint(1, within)) is not None:
            return killed
    assert changes_of(work, folder) is not None
    return kills


# What differs from run to run.
OF_THE_CLOCK = {"seconds", "finished", "started", "command", "peak_bytes"}


def without_clock(value: Any) -> Any:
    """JSON without times and what else depends on the moment."""
    if isinstance(value, dict):
        return {name: without_clock(one) for name, one in value.items() if name not in OF_THE_CLOCK}
    return [without_clock(one) for one in value] if isinstance(value, list) else value


def what_is_in(folder: Path) -> dict[str, Any]:
    """The files below a folder by path, in a form in which those of two undisturbed runs are equal.

    Without what runs keep of their earlier states: each start may, also of a line that a kill cut off.
    """
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "replaced" not in path.relative_to(folder).parts
    }


def _content(path: Path) -> Any:
    if path.suffix == ".jsonl":
        # Sorted, as which answers come first depends on which are missing.
        lines = path.read_text(encoding="utf-8").splitlines()
        return sorted(json.dumps(without_clock(json.loads(line)), sort_keys=True) for line in lines)
    if path.suffix == ".json":
        return without_clock(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".safetensors":
        # Its metadata has no order.
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
    # Pages show times.
    return "page" if path.suffix in (".html", ".md") else path.read_bytes()
