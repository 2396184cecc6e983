"""The same command, or several, started at once on one folder: one works, the others say so and change nothing."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.commands import inside
from builders.judges import BY_PROMPT
from builders.kills import Child
from builders.runs import Splits, contents, results_of, small_run
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import write_text
from safety_neurons.experiments.auto_tune import auto_tune
from safety_neurons.experiments.guard_test import guard_run
from safety_neurons.experiments.score_comparison import compare_scores
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import load
from safety_neurons.runs import context as context_module
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.targets import evaluate

# Of each group of commands.
TRIES = 5
SECONDS = 60


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_run(
        tmp_path_factory.mktemp("inputs"),
        Splits(4, 2, 2),
        find={"percent": 20.0},
        evaluate={"answer_tokens": 2, "judge": BY_PROMPT.name},
    )


class Gate:
    """Loading a model waits at it until it is opened, and fails then, or goes on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        monkeypatch.setattr(context_module, "load", self._load)

    def _load(self, *arguments: Any, **options: Any) -> ChatModel:
        (self._folder / "reached").touch()
        wait_until(lambda: (self._folder / "open").exists())
        if (self._folder / "open").read_text():
            raise SafetyNeuronsError("Enough.")
        return load(*arguments, **options)

    def wait(self) -> None:
        """Wait until a process has come to it."""
        wait_until(lambda: (self._folder / "reached").exists())

    def open(self, fail: bool) -> None:
        """Let the process go on, or fail."""
        write_text(self._folder / "open", "fail" if fail else "")

    def close(self) -> None:
        for name in ("open", "reached"):
            (self._folder / name).unlink(missing_ok=True)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gate:
    return Gate(tmp_path, monkeypatch)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


COMMANDS: dict[str, Callable[[Path, dict[str, Any]], object]] = {
    "run": lambda folder, given: run(folder, given, until="find"),
    "evaluate": lambda folder, given: evaluate([given["model"]], given_without_model(given), out=folder),
    "guard": lambda folder, given: guard_run(folder, given),
    "auto": lambda folder, given: auto_tune(folder, given, trials=1),
    "scores": lambda folder, given: compare_scores(folder, given, budgets=[1.0], seeds=0),
}


def given_without_model(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "model"}


def start(commands: list[str], folder: Path, inputs: dict[str, Any]) -> list[Child]:
    def begin(name: str) -> Child:
        return Child(lambda: COMMANDS[name](folder, copy.deepcopy(inputs)))

    return [begin(name) for name in commands]


def refused(child: Child) -> bool:
    """Whether the child was told that another process is at work."""
    status, said = child.end()
    return status == 2 and said.startswith("Another process is working on")


@pytest.mark.parametrize("number", range(TRIES))
@pytest.mark.parametrize("commands", [["run"] * 3, ["evaluate"] * 2, ["auto", "guard", "run"], ["scores"] * 2], ids=str)
def test_one_works_and_the_others_say_so(
    commands: list[str], number: int, inputs: dict[str, Any], gate: Gate, tmp_path: Path
) -> None:
    """While the model of the first loads, nobody else comes in, and whoever is refused removes nothing."""
    folder = tmp_path / "runs" / "folder"
    children = start(commands, folder, inputs)
    gate.wait()
    # The one at the gate waits for us, the others end.
    wait_until(lambda: sum(not child.has_ended() for child in children) == 1)
    (worker,) = (child for child in children if not child.has_ended())
    assert all(refused(child) for child in children if child is not worker)
    for late in start(commands, folder, inputs):
        assert refused(late)
    assert contents(folder) == {".lock": b""}
    gate.open(fail=True)
    assert worker.end() == (2, "Enough.")
    # The folder stays, empty, where one of the refused had made it.
    assert contents(tmp_path / "runs") in ({}, {"folder/.lock": b""})


def test_the_one_that_works_ends_as_if_alone(inputs: dict[str, Any], gate: Gate, tmp_path: Path) -> None:
    children = start(["run"] * 3, tmp_path / "run", inputs)
    gate.wait()
    wait_until(lambda: sum(not child.has_ended() for child in children) == 1)
    gate.open(fail=False)
    assert sorted(child.end()[0] for child in children) == [0, 2, 2]
    run(tmp_path / "alone", copy.deepcopy(inputs), until="find")
    assert results_of(tmp_path / "run")["neurons"] == results_of(tmp_path / "alone")["neurons"]


def test_what_only_reads_a_run_while_another_process_works_on_it(
    inputs: dict[str, Any],
    gate: Gate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its own page is left to the one that works; another file can be written; a run without a tuning is not merged."""
    gate.open(fail=False)
    folder = tmp_path / "run"
    run(folder, copy.deepcopy(inputs), until="find")
    gate.close()
    (worker,) = start(["guard"], folder, inputs)
    gate.wait()
    before = contents(folder)
    assert inside(monkeypatch, "report", str(folder)) == 2
    assert "name another file (--out)" in " ".join(capsys.readouterr().err.split())
    assert inside(monkeypatch, "report", str(folder), "--out", str(tmp_path / "page.html")) == 0
    assert (tmp_path / "page.html").exists()
    assert inside(monkeypatch, "report", str(folder), "--format", "md", "--out", str(tmp_path / "page.md")) == 0
    assert inside(monkeypatch, "merge", str(folder), str(tmp_path / "merged")) == 2
    assert "no finished tuning" in " ".join(capsys.readouterr().err.split())
    assert contents(folder) == before
    gate.open(fail=True)
    assert worker.end() == (2, "Enough.")
    assert inside(monkeypatch, "report", str(folder)) == 0
    assert (folder / "report.html").exists()
