"""The run folder: what may be done in it, and what of someone else's is left alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from builders.listeners import Recorder
from builders.runs import contents, no_model, results_of
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.experiments.dose_response import dose_response
from safety_neurons.models.chat import ChatModel
from safety_neurons.runs import context as context_module
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.targets import evaluate


@pytest.mark.parametrize("change", ["model", "harmful", "benign", "borderline"])
def test_folder_of_another_run_is_left_as_it_was(
    finished: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(context_module, "load", no_model)
    if change == "model":
        other = str(Path(given["model"]).with_name("other-model"))
    else:
        other = str(tmp_path / "other.jsonl")
        Path(other).write_text(Path(given[change]).read_text().replace("number 3 ", "number 33 "))
    before = contents(finished)
    with pytest.raises(SafetyNeuronsError, match="Choose another folder"):
        run(finished, {change: other})
    assert contents(finished) == before


def test_public_set_from_a_folder_is_known_by_its_content(given: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "data" / "advbench.jsonl"
    copy.parent.mkdir()
    shutil.copy(given["harmful"], copy)
    run(tmp_path / "run", given | {"harmful": "advbench", "data_dir": str(copy.parent)}, until="find")
    recorded = results_of(tmp_path / "run")["run"]["prompts"]["harmful"]
    assert (recorded["name"], recorded["source"]) == ("advbench", str(copy))
    assert (recorded["column"], recorded["notes"], recorded["duplicates"]) == ("text", [], 0)
    moved = shutil.copytree(copy.parent, tmp_path / "moved")
    for change in ({}, {"data_dir": str(moved)}):
        notes = Recorder()
        run(tmp_path / "run", change, until="find", listener=notes)
        assert notes.tasks == []
    copy.write_text(copy.read_text().replace("number 3 ", "number 33 "))
    with pytest.raises(SafetyNeuronsError, match="other harmful prompts"):
        run(tmp_path / "run", until="find")


def test_changed_weights_under_the_same_name_are_another_model(
    finished: Path, given: dict[str, Any], tmp_path: Path, make_model: Callable[..., ChatModel]
) -> None:
    moved = shutil.copytree(given["model"], tmp_path / "model")
    run(tmp_path / "run", given | {"model": str(moved)}, until="find")
    before = contents(tmp_path / "run")
    make_model("llama", seed=7).model.save_pretrained(moved)
    with pytest.raises(SafetyNeuronsError, match="another model"):
        run(tmp_path / "run", until="find")
    assert contents(tmp_path / "run") == before


def test_folder_that_is_no_run_is_left_as_it_was(given: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("mine")
    with pytest.raises(SafetyNeuronsError, match="not empty"):
        run(folder, given)
    assert contents(tmp_path) == {"thesis/chapter.txt": b"mine"}


def test_file_as_a_folder_is_an_error(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SafetyNeuronsError, match="file"):
            run(out, given)
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"schema": 2}'])
def test_foreign_record_is_an_error(given: dict[str, Any], tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SafetyNeuronsError, match=r"another version|run\.json"):
        run(tmp_path, given)
    assert contents(tmp_path) == {"run.json": text.encode()}


def test_a_run_of_an_earlier_version_is_refused_in_one_sentence(finished: Path, found: Path) -> None:
    """What 0.1 kept of its answers is not what is read now."""
    record = json.loads((finished / "run.json").read_text())
    (finished / "run.json").write_text(json.dumps(record | {"schema": 2}))
    before = contents(finished)
    calls: dict[str, Callable[[], Any]] = {
        "run": lambda: run(finished),
        "evaluate": lambda: evaluate(finished),
        "side by side": lambda: evaluate([finished, found], out=finished.parent / "out"),
        "an experiment": lambda: dose_response(finished, [1.0]),
    }
    for name, call in calls.items():
        with pytest.raises(SafetyNeuronsError, match="holds a run of another version of safety-neurons") as error:
            call()
        assert str(error.value).count(". ") == 0, name
    assert contents(finished) == before
    assert not (finished.parent / "out").exists()


def test_locked_folder_is_an_error(finished: Path) -> None:
    with filelock.FileLock(finished / ".lock"), pytest.raises(SafetyNeuronsError, match="Another process"):
        run(finished, {"evaluate": {"attacks": ["direct"]}})
    assert run(finished).rows
