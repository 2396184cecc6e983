"""Whatever is killed, at whatever moment, goes on with the same command and ends as if nobody had disturbed it."""

import contextlib
import copy
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from builders.judges import BY_PROMPT
from builders.kills import changes_of, kill_often, what_is_in
from builders.runs import Splits, small_run
from safety_neurons import cli
from safety_neurons.experiments.auto_tune import auto_tune
from safety_neurons.experiments.guard_test import guard_run
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.targets import evaluate


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_run(
        tmp_path_factory.mktemp("inputs"),
        Splits(6, 2, 2),
        find={"percent": 20.0, "positions": 3},
        explain={"random_sets": 20},
        calibrate={"prompt_positions": 3},
        tune={"answer_tokens": 4, "epochs": 1, "batch_size": 4, "learning_rate": 0.01, "checkpoint_every": 1},
        evaluate={"answer_tokens": 4, "attacks": ["direct", "prefill"], "judge": BY_PROMPT.name},
        guard={"false_positive_rate": 0.2, "percent": 20.0, "alpha": 1.0},
    )


@pytest.fixture(scope="module")
def whole(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, never written to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, copy.deepcopy(inputs))
    return folder


def command(*arguments: object) -> None:
    """The command line, in a process of its own."""
    sys.argv = ["safety-neurons", *map(str, arguments)]
    with contextlib.suppress(SystemExit):
        cli.main()


class Work(NamedTuple):
    """Something to kill, so many times; each start can make this fraction of all changes before it is killed."""

    kills: int
    share: float
    do: Callable[[Path, dict[str, Any]], object]
    finished: bool = True


WORK = {
    "run": Work(8, 0.25, lambda folder, inputs: run(folder / "run", inputs), finished=False),
    "changed": Work(4, 0.5, lambda folder, _: run(folder / "run", {"calibrate": {"alpha_rejection": 2.0}})),
    "evaluate": Work(5, 0.4, lambda folder, _: evaluate([folder / "run"], {"seed": 1}, out=folder / "out")),
    "guard": Work(3, 1.0, lambda folder, _: guard_run(folder / "run")),
    "auto": Work(4, 0.5, lambda folder, _: auto_tune(folder / "run", trials=2)),
    "merge": Work(6, 1.0, lambda folder, _: command("merge", folder / "run", folder / "merged")),
    "report": Work(3, 1.0, lambda folder, _: command("report", folder / "run")),
}


@pytest.mark.parametrize("name", WORK)
def test_what_is_killed_goes_on_and_ends_the_same(
    name: str, inputs: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    work = WORK[name]
    places = [tmp_path / "undisturbed", tmp_path / "killed"]
    for place in places:
        place.mkdir()
        if work.finished:
            shutil.copytree(whole, place / "run")
    undisturbed, killed = places
    changes = changes_of(lambda: work.do(undisturbed, copy.deepcopy(inputs)), undisturbed)
    assert changes is not None
    times = kill_often(
        lambda: work.do(killed, copy.deepcopy(inputs)), killed, math.ceil(changes * work.share), work.kills
    )
    assert times
    found, expected = what_is_in(killed), what_is_in(undisturbed)
    assert found.keys() == expected.keys()
    for path, content in expected.items():
        assert found[path] == content, path
