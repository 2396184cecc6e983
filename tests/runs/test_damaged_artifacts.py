"""Files of a run that are damaged or swapped: told, kept and made again, and never used; each advice works."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.listeners import Recorder
from builders.runs import contents, results_of
from safety_neurons.calibration.guard import Guard
from safety_neurons.cli import main
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import read_json, write_json
from safety_neurons.experiments.guard_test import guard_run
from safety_neurons.runs.artifacts import load_corpus, load_delta, load_neurons, load_results
from safety_neurons.runs.folder import RunFolder
from safety_neurons.runs.guard import guard_of
from safety_neurons.runs.opened import opened
from safety_neurons.runs.pipeline import run

LEFT: dict[str, tuple[str, Callable[[RunFolder], Any]]] = {
    "neurons.safetensors": ("find", load_neurons),
    "directions.safetensors": ("find", load_neurons),
    "corpus.jsonl": ("tune", load_corpus),
    "delta.safetensors": ("tune", load_delta),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="session")
def of_another_model(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, as far as its tuning, of a model of the same shape with other weights."""
    folder = tmp_path_factory.mktemp("another") / "run"
    run(folder, inputs | {"model": str(Path(inputs["model"]).with_name("other-model"))}, until="tune")
    return folder


def command(text: str) -> int:
    """The exit status of a command line as an error message names it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", shlex.split(text))
        with pytest.raises(SystemExit) as stopped:
            main()
    return stopped.value.code or 0  # type: ignore[return-value]


@pytest.mark.parametrize("name", LEFT)
def test_advice_of_a_damaged_file_works_with_the_file_in_place(
    whole: Path, finished: Path, name: str, performed: list[str]
) -> None:
    stage, load = LEFT[name]
    flip(finished / name)
    damaged = (finished / name).read_bytes()
    with pytest.raises(SafetyNeuronsError, match=f"{name} is not the file that `{stage}` left") as caught:
        load(RunFolder(finished))
    advice = str(caught.value).rpartition("Make it again: ")[2]
    assert advice == f"safety-neurons {stage} {finished}"
    assert command(advice) == 0
    # What is made again is the same here, so that the later stages are as good as before.
    assert performed == [stage]
    assert (finished / name).read_bytes() == (whole / name).read_bytes()
    assert (finished / "replaced" / "1" / name).read_bytes() == damaged
    load(RunFolder(finished))
    run(finished)
    assert performed == [stage]
    assert results_of(finished)["evaluation"] == results_of(whole)["evaluation"]


@pytest.mark.parametrize("harm", ["flip", "swap"])
@pytest.mark.parametrize("name", ["neurons.safetensors", "delta.safetensors"])
def test_run_tells_what_it_makes_again(
    whole: Path, finished: Path, of_another_model: Path, name: str, harm: str
) -> None:
    path = finished / name
    if harm == "flip":
        flip(path)
    else:
        path.unlink()
        shutil.copy(of_another_model / name, path)
    notes = Recorder()
    run(finished, listener=notes)
    stage = LEFT[name][0]
    told = f"{path} is not the file that `{stage}` left: it is damaged or was replaced, so these stages are redone: "
    assert any(said.startswith(f"{told}{stage}") for said in notes.said)
    assert any("The run as it was is kept in" in said for said in notes.said)
    assert path.read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_cannot_be_replaced_is_told_before_the_work(
    finished: Path, kind: str, performed: list[str], tmp_path: Path
) -> None:
    path = finished / "neurons.safetensors"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        (tmp_path / "mine").write_text("mine")
        path.symlink_to(tmp_path / "mine")
    with pytest.raises(SafetyNeuronsError, match=r"neurons\.safetensors is a .*([Mm]ove it away|remove it)"):
        run(finished)
    assert performed == []
    path.rename(tmp_path / "away")
    run(finished)
    assert performed == ["find"]
    if kind == "link":
        assert (tmp_path / "mine").read_text() == "mine"


def test_stages_that_used_other_files_are_made_again(finished: Path, performed: list[str]) -> None:
    """Neurons that come out differently, as on other hardware: what was tuned from the old ones is out of date."""
    record = read_json(finished / "run.json")
    results = results_of(finished)
    for stages in (record["stages"], results["run"]["stages"]):
        stages["find"]["files"]["neurons.safetensors"] = "0" * 64
    write_json(finished / "run.json", record)
    write_json(finished / "results.json", results)
    notes = Recorder()
    run(finished, until="find", listener=notes)
    assert performed == ["find"]
    assert any("out of date: explain, calibrate, tune, evaluate, report." in said for said in notes.said)
    assert results_of(finished).keys() >= {"neurons"}
    assert "evaluation" not in results_of(finished)
    run(finished)
    assert performed == ["find", "explain", "calibrate", "tune", "evaluate"]


def test_merge_refuses_results_of_another_run(
    finished: Path, of_another_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(of_another_model / "results.json", finished / "results.json")
    with pytest.raises(SafetyNeuronsError, match=r"results\.json is not of the run .*other-model") as caught:
        load_results(RunFolder(finished))
    assert command(f"safety-neurons merge {finished} {tmp_path / 'merged'}") == 2
    assert "other-model" in "".join(capsys.readouterr().err.split())
    assert not (tmp_path / "merged").exists()
    assert command(str(caught.value).rpartition("Make it again: ")[2]) == 0
    assert load_results(RunFolder(finished)).evaluation is not None
    assert command(f"safety-neurons merge {finished} {tmp_path / 'merged'}") == 0
    assert "other-model" not in (tmp_path / "merged" / "README.md").read_text()


def test_file_of_another_model_is_refused_with_both_names_even_if_the_record_names_it(
    finished: Path, of_another_model: Path
) -> None:
    shutil.copy(of_another_model / "delta.safetensors", finished / "delta.safetensors")
    record = read_json(finished / "run.json")
    theirs = read_json(of_another_model / "run.json")
    record["stages"]["tune"]["files"]["delta.safetensors"] = theirs["stages"]["tune"]["files"]["delta.safetensors"]
    write_json(finished / "run.json", record)
    model, other = record["model"], theirs["model"]
    with pytest.raises(SafetyNeuronsError) as caught:
        load_delta(RunFolder(finished))
    for named in (model["name"], other["name"], model["identity"][:12], other["identity"][:12]):
        assert named in str(caught.value)


def test_stage_that_is_not_finished_is_told_with_the_command(found: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=f"`tune` of {found} is not finished. Run it: safety-neurons tune"):
        load_delta(RunFolder(found))


OPTIONS: dict[str, Any] = {"guard": {"percent": 20.0, "alpha": 1.0, "false_positive_rate": 0.2}}


@pytest.mark.parametrize("harm", ["flip", "old", "swap"])
def test_unusable_guard_is_told_kept_and_fitted_again(found: Path, harm: str) -> None:
    path = found / "guard.safetensors"
    guard_run(found, OPTIONS, answers=False)
    fitted = Guard.load(path)
    assert results_of(found)["guard"]["digest"] == fitted.digest
    whole = path.read_bytes()
    if harm == "flip":
        flip(path)
    elif harm == "old":
        path.write_bytes(b"nothing")
    else:
        # Whole, and of this run: but not the one that was tested.
        guard = Guard.load(path)
        Guard(guard.neurons, guard.detector, guard.layer, 0.9, guard.alpha, guard.calibration, guard.origin).save(path)
    notes = Recorder()
    with opened(found, OPTIONS, notes, "") as context:
        again = guard_of(context)
    assert again.digest == fitted.digest
    assert path.read_bytes() == whole
    assert [said for said in notes.said if str(path) in said and "The guard is fitted again. The run as it" in said]
    assert "guard.safetensors" in contents(found / "replaced" / "1")


def test_damaged_guard_that_was_evaluated_is_told(given: dict[str, Any], tmp_path: Path, performed: list[str]) -> None:
    given["evaluate"] |= {"defenses": ["none", "guard"], "attacks": ["direct"]}
    given |= OPTIONS
    folder = tmp_path / "run"
    run(folder, given, until="evaluate")
    before, whole = results_of(folder), (folder / "guard.safetensors").read_bytes()
    assert "guard.safetensors" in before["run"]["stages"]["evaluate"]["files"]
    flip(folder / "guard.safetensors")
    performed.clear()
    notes = Recorder()
    run(folder, until="evaluate", listener=notes)
    assert performed == ["evaluate"]
    assert any("guard.safetensors is not the file that `evaluate` left" in said for said in notes.said)
    assert (folder / "guard.safetensors").read_bytes() == whole
    assert json.dumps(results_of(folder)["evaluation"]["summary"]) == json.dumps(before["evaluation"]["summary"])


def test_damaged_checkpoint_is_told_and_deleting_it_works(given: dict[str, Any], tmp_path: Path) -> None:
    given["tune"]["checkpoint_every"] = 1
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, given, until="tune", listener=Recorder("tuning", 2))
    flip(folder / ".checkpoint.safetensors")
    with pytest.raises(SafetyNeuronsError, match=r"\.checkpoint\.safetensors is damaged: .* Delete it"):
        run(folder, until="tune")
    (folder / ".checkpoint.safetensors").unlink()
    run(folder, until="tune")
    load_delta(RunFolder(folder))
