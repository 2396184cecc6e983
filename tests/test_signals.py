"""Ctrl-C, SIGTERM and SIGHUP end a command in one sentence, with the exit status that shells expect."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from builders.kills import Child
from safety_neurons import cli
from safety_neurons.core.files import write_text
from safety_neurons.core.locks import locked
from safety_neurons.runs import pipeline as pipeline_module

SECONDS = 30


def wait_for(path: Path) -> None:
    until = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < until, f"{path} was waited for in vain"
        time.sleep(0.01)


class Command:
    """`safety-neurons run` in a process of its own, which works until a signal comes, and tidies up until `free`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, ignored: signal.Signals | None = None) -> None:
        self.folder = folder
        (folder / "free").touch()

        def run(*_: Any, **__: Any) -> None:
            with locked(folder / "run"):
                write_text(folder / "run" / "results.json", "{}")
                (folder / "working").touch()
                try:
                    time.sleep(SECONDS)
                finally:
                    (folder / "tidying").touch()
                    wait_for(folder / "free")

        def command() -> None:
            for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
            if ignored is not None:
                signal.signal(ignored, signal.SIG_IGN)
            sys.argv = ["safety-neurons", "run", "--out", str(folder / "run")]
            with (folder / "said").open("w") as sys.stderr:
                cli.main()

        monkeypatch.setattr(pipeline_module, "run", run)
        self.child = Child(command)
        wait_for(folder / "working")

    def send(self, number: signal.Signals) -> None:
        os.kill(self.child.number, number)

    def said(self) -> str:
        return " ".join((self.folder / "said").read_text().split())


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, "Error: Stopped. Run the same command again to resume."),
        (signal.SIGTERM, 143, "Error: Stopped by SIGTERM. Run the same command again to resume."),
        (signal.SIGHUP, 129, "Error: Stopped by SIGHUP. Run the same command again to resume."),
    ],
)
def test_a_signal_ends_in_one_sentence(
    number: signal.Signals, status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Command(tmp_path, monkeypatch)
    command.send(number)
    assert command.child.end()[0] == status
    assert command.said() == message
    with locked(tmp_path / "run"):
        assert sorted(os.listdir(tmp_path / "run")) == [".lock", "results.json"]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(second: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = Command(tmp_path, monkeypatch)
    (tmp_path / "free").unlink()
    command.send(signal.SIGINT)
    wait_for(tmp_path / "tidying")
    command.send(second)
    assert command.child.end()[0] == 128 + second
    assert "Traceback" not in command.said()
    with locked(tmp_path / "run"):
        pass


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""
    command = Command(tmp_path, monkeypatch, ignored=signal.SIGHUP)
    command.send(signal.SIGHUP)
    time.sleep(0.05)
    assert not command.child.has_ended()
    command.send(signal.SIGTERM)
    assert command.child.end()[0] == 143


def test_handlers_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(sys, "argv", ["safety-neurons", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_working_directory_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "argv", ["safety-neurons", "list", "models"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "The working directory cannot be used" in capsys.readouterr().err
