"""What is in a run's folder: no link or device, answers for the owner alone, and nothing missing at the end."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.commands import inside, one_paragraph
from builders.runs import contents, no_model
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.experiments.auto_tune import auto_tune
from safety_neurons.experiments.dose_response import dose_response
from safety_neurons.experiments.guard_test import guard_run
from safety_neurons.report.exports import write_markdown
from safety_neurons.report.results import RunResults
from safety_neurons.runs import context as context_module
from safety_neurons.runs.folder import FILES, RunFolder
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.targets import evaluate

ARTIFACTS = (
    *("run.json", "results.json", "report.html", "neurons.safetensors", "directions.safetensors", "corpus.jsonl"),
    *("delta.safetensors", "guard.safetensors", ".checkpoint.safetensors", "responses.jsonl", "verdicts.jsonl"),
    *("measurements.jsonl", "measures.jsonl", "random-search.jsonl", "trials.jsonl", "responses.jsonl.damaged"),
    *("evaluation.json", "evaluation.md", "report.md", ".lock", "replaced", "lora-0123456789abcdef"),
)
# What holds answers that are not redacted.
PRIVATE = {"responses.jsonl", "verdicts.jsonl", "corpus.jsonl"}
SHOWN = {"results.json", "report.html"}


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_that_is_a_link_or_a_pipe_is_refused_by_everything(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(context_module, "load", no_model)
    (tmp_path / "precious").write_text("mine")
    path = finished / name
    path.unlink(missing_ok=True)
    for make in (lambda: path.symlink_to(tmp_path / "precious"), lambda: os.mkfifo(path)):
        make()
        calls: dict[str, Callable[[], Any]] = {
            "run": lambda: run(finished),
            "evaluate": lambda: evaluate(finished),
            "side by side": lambda: evaluate([finished], out=tmp_path / "out"),
            "guard": lambda: guard_run(finished),
            "auto": lambda: auto_tune(finished, trials=1),
            "experiment": lambda: dose_response(finished, [1.0]),
        }
        if name not in ("run.json",):
            calls["out"] = lambda: evaluate([finished], out=finished)
        for call, do in calls.items():
            with pytest.raises(SafetyNeuronsError, match=f"{name} is a (symbolic link|pipe)"):
                do()
            assert not (tmp_path / "out").exists(), call
        for arguments in (["merge", str(finished), str(tmp_path / "merged")], ["report", str(finished)]):
            assert inside(monkeypatch, *arguments) == 2
            said = capsys.readouterr().err
            assert one_paragraph(said)
            assert name in said.replace("\n", "")
        path.unlink()
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_folder_on_another_disk_is_fine(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    run(tmp_path / "run", given, until="find")
    assert (tmp_path / "disk" / "neurons.safetensors").exists()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SafetyNeuronsError, match="broken is a symbolic link to a folder that does not exist"):
        run(tmp_path / "broken", given, until="find")


def test_all_that_a_run_writes_is_checked(finished: Path) -> None:
    assert all(FILES.fullmatch(name) for name in modes(finished))


@pytest.mark.parametrize("shown", [False, True])
def test_answers_are_the_owners_alone(shown: bool, finished: Path, tmp_path: Path) -> None:
    """Files from before are tightened when they are written again; copies of a run keep what they had."""
    before = os.umask(0o022)
    try:
        for name in PRIVATE:
            (finished / name).chmod(0o644)
        results = run(finished, {"show_responses": shown, "calibrate": {"alpha_rejection": 2.0}})
        write_markdown({"run": results}, tmp_path / "report.md")
    finally:
        os.umask(before)
    found = modes(finished) | modes(tmp_path)
    tight = {name for name, mode in found.items() if mode == 0o600}
    # The corpus was not written again; filelock decides about its file.
    expected = {"responses.jsonl", "verdicts.jsonl", *({*SHOWN, "report.md"} if shown else ())}
    assert tight - {".lock", "corpus.jsonl"} == expected
    assert {found[name] for name in found.keys() - expected - {".lock", "corpus.jsonl"}} == {0o644}


def test_a_new_run_keeps_its_answers_private(whole: Path) -> None:
    found = modes(whole)
    assert {name for name, mode in found.items() if mode == 0o600 and name != ".lock"} == PRIVATE


@pytest.mark.parametrize("name", ["results.json", "neurons.safetensors", "delta.safetensors", "corpus.jsonl"])
def test_what_is_removed_meanwhile_is_told(
    name: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command says that it is done while a file is missing; the same one mends it."""
    folder = RunFolder(tmp_path / "run")

    original = RunFolder.write_record

    def write_record(self: RunFolder, record: Any) -> None:
        original(self, record)
        if "report" in record.stages:
            (self.path / name).unlink(missing_ok=True)

    with monkeypatch.context() as removing:
        removing.setattr(RunFolder, "write_record", write_record)
        with pytest.raises(SafetyNeuronsError, match=f"{name} was removed while .* Run the same command again"):
            run(folder.path, given)
    run(folder.path, given)
    assert name in contents(folder.path)
    assert isinstance(run(folder.path), RunResults)
