"""Whole runs of a tiny model: what a folder holds afterwards, and what is done again when and when not.

A random model writes gibberish, so the verdicts come from the prompts alone; what is tested is everything around them.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.listeners import Recorder
from builders.runs import TEXTS, contents, lines_of, no_model, results_of, same_tensors, section_of
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models import load as load_module
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.locate import Located
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.report.results import RunResults
from safety_neurons.runs import context as context_module
from safety_neurons.runs import pipeline as pipeline_module
from safety_neurons.runs.folder import STAGES
from safety_neurons.runs.pipeline import run
from safety_neurons.tuning.delta import NeuronDelta

ARTIFACTS = {
    "run.json",
    "neurons.safetensors",
    "directions.safetensors",
    "corpus.jsonl",
    "delta.safetensors",
    "responses.jsonl",
    "verdicts.jsonl",
    "results.json",
    "report.html",
}


def same_work(one: Path, other: Path) -> None:
    """The same neurons, corpus, delta, answers and numbers."""
    for name in ("neurons.safetensors", "directions.safetensors", "delta.safetensors"):
        assert same_tensors(one / name, other / name), name
    assert (one / "corpus.jsonl").read_bytes() == (other / "corpus.jsonl").read_bytes()
    first, second = results_of(one), results_of(other)
    for part in ("rows", "examples", "neurons", "words", "write_share", "vocabulary", "evaluation"):
        assert first[part] == second[part], part
    assert first["training"]["loss"] == second["training"]["loss"]
    for name in ("responses.jsonl", "verdicts.jsonl"):
        mine, theirs = (sorted(lines_of(folder / name), key=lambda line: line["key"]) for folder in (one, other))
        assert mine == theirs, name


def test_run_leaves_every_artifact(whole: Path, given: dict[str, Any]) -> None:
    assert {path.name for path in whole.iterdir()} - {".lock"} == ARTIFACTS
    results = results_of(whole)
    assert results["schema"] == 3
    assert results["run"]["settings"]["find"]["percent"] == 20.0
    assert results["run"]["model"]["name"] == given["model"]
    whole_model = {"layers": 3, "layers_total": 3, "without_mlp": 0, "neurons": 144, "unread": []}
    assert results["run"]["coverage"] == whole_model
    assert results["run"]["prompts"]["harmful"]["train"] == 8
    assert results["run"]["prompts"]["borderline"]["test"] == 4
    assert list(results["run"]["stages"]) == list(STAGES)
    assert results["training"]["unchanged_outside"] is True
    assert NeuronSet.load(whole / "neurons.safetensors", whole / "directions.safetensors").directions is not None
    assert any(bool(value.any()) for value in NeuronDelta.load(whole / "delta.safetensors").tensors.values())
    assert b"<html" in (whole / "report.html").read_bytes()[:1000].lower()
    keys = [line["key"] for line in lines_of(whole / "responses.jsonl")]
    assert len(keys) == len(set(keys))


def test_run_over_packed_weights(
    given: dict[str, Any],
    pack: Callable[[ChatModel], ChatModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All stages, with a format of our own in the place of bitsandbytes."""
    original = context_module.load_model
    monkeypatch.setattr(
        context_module,
        "load_model",
        lambda settings: pack(original(settings.model_copy(update={"quantize": None}))),
    )
    run(tmp_path / "run", given | {"quantize": "8bit"})
    results = results_of(tmp_path / "run")
    assert results["training"]["unchanged_outside"] is True
    assert {cell["defense"] for cell in results["evaluation"]["cells"] if not cell["reason"]} == {"none", "safetuning"}
    assert any(bool(value.any()) for value in NeuronDelta.load(tmp_path / "run/delta.safetensors").tensors.values())


def test_second_run_does_nothing(finished: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(finished)
    monkeypatch.setattr(context_module, "load", no_model)
    notes = Recorder()
    found = RunResults.of(results_of(finished))
    assert run(finished, given, listener=notes) == run(finished, {}, listener=notes) == found
    assert contents(finished) == before
    assert notes.tasks == []


def test_finished_run_answers_without_the_slow_imports(finished: Path) -> None:
    code = (
        "import atexit, sys; from safety_neurons.cli import main\n"
        "slow = {'torch', 'transformers', 'scipy', 'numpy', 'plotly'}\n"
        "atexit.register(lambda: print(sorted(slow & sys.modules.keys())))\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "run", "--out", str(finished)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_two_runs_with_one_seed_are_the_same(whole: Path, given: dict[str, Any], tmp_path: Path) -> None:
    torch.rand(3)
    run(tmp_path / "again", given)
    same_work(whole, tmp_path / "again")


def test_lost_report_is_written_again_without_the_model(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finished / "report.html").unlink()
    monkeypatch.setattr(context_module, "load", no_model)
    run(finished)
    assert b"<html" in (finished / "report.html").read_bytes()[:1000].lower()


def test_changed_evaluation_redoes_evaluation_and_report_alone(
    finished: Path, performed: list[str], generated: list[str]
) -> None:
    before = results_of(finished)
    notes = Recorder()
    run(finished, {"evaluate": {"attacks": ["direct"]}}, listener=notes)
    after = results_of(finished)
    assert performed == ["evaluate"]
    # Every answer that is needed was there already.
    assert generated == []
    assert any("redone" in said and "evaluate" in said and "tune" not in said for said in notes.said)
    assert after["run"]["settings"]["evaluate"]["attacks"] == ["direct"]
    assert after["run"]["settings"]["evaluate"]["answer_tokens"] == 4
    assert {cell["attack"] for cell in after["evaluation"]["cells"]} == {"direct"}
    for part in ("neurons", "words", "write_share", "vocabulary", "training"):
        assert after[part] == before[part]
    assert after["rows"] == before["rows"]


def test_changed_find_redoes_all_and_is_as_if_run_anew(
    finished: Path, given: dict[str, Any], tmp_path: Path, performed: list[str]
) -> None:
    run(finished, {"find": {"percent": 10.0}})
    assert performed == ["find", "explain", "calibrate", "tune", "evaluate"]
    given["find"]["percent"] = 10.0
    run(tmp_path / "anew", given)
    for name in ("neurons.safetensors", "delta.safetensors"):
        assert same_tensors(finished / name, tmp_path / "anew" / name), name
    assert (finished / "corpus.jsonl").read_bytes() == (tmp_path / "anew" / "corpus.jsonl").read_bytes()
    assert results_of(finished)["rows"] == results_of(tmp_path / "anew")["rows"]
    assert results_of(finished)["examples"] == results_of(tmp_path / "anew")["examples"]


def test_settings_that_are_changed_back_give_the_whole_results_again(whole: Path, finished: Path) -> None:
    run(finished, {"find": {"percent": 10.0}}, until="find")
    run(finished, {"find": {"percent": 20.0}})
    before, after = results_of(whole), results_of(finished)
    assert after.keys() == before.keys()
    for part in ("rows", "examples", "neurons", "words"):
        assert after[part] == before[part]


def test_answers_of_old_directions_are_not_taken_for_new_ones(given: dict[str, Any], tmp_path: Path) -> None:
    """The same neurons can come with other directions: random ones do not depend on how many prompts are read."""
    # The sample of two holds none of the odd ones.
    for name in ("harmful", "benign"):
        lines = [json.loads(line) for line in Path(given[name]).read_text().splitlines()]
        for number, line in enumerate(lines):
            line["text"] += " QUICK!!" if number % 2 else " I beg you, tell me now"
        given[name] = str(tmp_path / f"{name}.jsonl")
        Path(given[name]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    given["find"] |= {"score": "random", "prompts": 2, "percent": 25.0}
    given["calibrate"] |= {"alpha_conformity": 30.0, "alpha_rejection": 30.0}
    run(tmp_path / "run", given, until="calibrate")
    old = results_of(tmp_path / "run")["examples"]
    given["find"]["prompts"] = 8
    run(tmp_path / "run", given, until="calibrate")
    run(tmp_path / "anew", given, until="calibrate")
    # The verdicts come from the prompts alone, so the answers have to be compared; refusals are shown.
    new = results_of(tmp_path / "anew")["examples"]
    assert new != old
    assert results_of(tmp_path / "run")["examples"] == new


@pytest.mark.parametrize(
    ("stop_in", "after"),
    [
        ("base, none: harmful", 1),
        ("found, toward rejection: benign", 3),
        ("random, toward conformity", 4),
        ("corpus: refusals", 5),
        ("tuning", 1),
        ("cells of the grid", 2),
        ("cells of the grid", 7),
        ("finding", 3),
        ("reading the residual stream", 2),
        ("projecting", 1),
    ],
)
def test_killed_run_goes_on_and_ends_the_same(
    whole: Path, given: dict[str, Any], tmp_path: Path, generated: list[str], stop_in: str, after: int
) -> None:
    killed = Recorder(stop_in, after)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", given, listener=killed)
    assert results_of(tmp_path / "run")["schema"] == 3 if (tmp_path / "run" / "results.json").exists() else True
    run(tmp_path / "run")
    same_work(whole, tmp_path / "run")
    assert len(generated) == len(lines_of(whole / "responses.jsonl")), "an answer was generated twice"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in whole.iterdir()}


def test_run_killed_while_it_wrote_an_answer_goes_on(whole: Path, given: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, given, listener=Recorder("cells of the grid", 2))
    written = (folder / "responses.jsonl").read_bytes()
    (folder / "responses.jsonl").write_bytes(written[:-9])
    run(folder)
    same_work(whole, folder)


def test_until_explain_finds_and_explains_only(
    given: dict[str, Any], tmp_path: Path, performed: list[str], generated: list[str]
) -> None:
    run(tmp_path / "run", given, until="explain")
    results = results_of(tmp_path / "run")
    assert performed == ["find", "explain"]
    assert generated == []
    assert results["neurons"]["total"] > 0
    assert results["words"]
    assert results["rows"] == []
    assert not (tmp_path / "run" / "corpus.jsonl").exists()
    assert not (tmp_path / "run" / "report.html").exists()
    run(tmp_path / "run", until="evaluate")
    assert performed == ["find", "explain", "tune", "evaluate"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"evaluate": {"attacks": ["direct", "prefil"]}}, "prefil"),
        ({"evaluate": {"judge": "keyword"}}, "keyword"),
        ({"find": {"score": "contras"}}, "contras"),
        ({"find": {"scope": "galaxy"}}, "scope"),
        ({"find": {"percent": 0}}, "percent"),
        ({"tune": {"epoch": 3}}, "epoch"),
        ({"color": "red"}, "color"),
        ({"model": {"name": "a table"}}, "model"),
        ({"find": 3}, "find"),
        ({"harmful": "no-such-set"}, "no-such-set"),
        ({"benign": "missing/file.csv"}, "file.csv"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"chat_template": "missing/template.jinja"}, "template.jinja"),
        ({"harmful": "advbench", "data_dir": "missing/data"}, "missing/data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_told_before_the_model_is_loaded(
    given: dict[str, Any],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    name: str,
) -> None:
    monkeypatch.setattr(context_module, "load", no_model)
    for section, value in change.items():
        old = given.get(section, {})
        given[section] = {**old, **value} if isinstance(value, dict) and isinstance(old, dict) else value
    before = contents(finished)
    for folder in (tmp_path / "new", finished):
        with pytest.raises(SafetyNeuronsError, match=name):
            run(folder, given)
    assert contents(finished) == before
    left = contents(tmp_path / "new") if (tmp_path / "new").exists() else {}
    assert left.keys() <= {".lock"}


def test_mistake_does_not_spoil_the_folder(given: dict[str, Any], tmp_path: Path) -> None:
    """A model that cannot be loaded leaves nothing that would forbid the right one."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(SafetyNeuronsError):
        run(tmp_path / "run", given | {"model": str(broken)}, until="find")
    assert section_of("neurons", run, tmp_path / "run", given, until="find")["total"] > 0


@pytest.mark.parametrize("damage", ["delete", "break"])
def test_lost_or_broken_results_are_made_again(whole: Path, finished: Path, damage: str, generated: list[str]) -> None:
    """A broken file is kept aside. Every answer is in the cache."""
    notes = Recorder()
    if damage == "break":
        (finished / "results.json").write_text('{"schema"')
    else:
        (finished / "results.json").unlink()
    run(finished, listener=notes)
    if damage == "break":
        assert any("results.json is not valid JSON" in said and "replaced/1" in said for said in notes.said)
        assert (finished / "replaced/1/results.json").read_text() == '{"schema"'
    assert generated == []
    assert results_of(finished)["rows"] == results_of(whole)["rows"]
    assert results_of(finished)["neurons"] == results_of(whole)["neurons"]


@pytest.mark.parametrize("name", ["neurons.safetensors", "directions.safetensors", "delta.safetensors"])
def test_lost_artifact_is_made_again(whole: Path, finished: Path, name: str) -> None:
    """Its stage is not done while its artifact is missing."""
    (finished / name).unlink()
    run(finished)
    assert same_tensors(finished / name, whole / name)


def test_model_that_was_fetched_in_the_run_is_known_the_next_time(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run of a hub's model learns its commit only when the model is loaded; the second must not redo all."""
    fetched: list[str] = []

    def locate(name: str, *_args: Any, **_options: Any) -> Located:
        return Located(name, fetched[-1] if fetched else None)

    monkeypatch.setattr(pipeline_module, "locate", locate)
    monkeypatch.setattr(load_module, "locate", locate)
    original = load_module._from_pretrained

    def fetch(*args: Any) -> Any:
        loaded = original(*args)
        fetched.append("commit-1")
        return loaded

    monkeypatch.setattr(load_module, "_from_pretrained", fetch)
    run(tmp_path / "run", given, until="find")
    assert results_of(tmp_path / "run")["run"]["model"]["identity"] == "commit-1"
    notes = Recorder()
    run(tmp_path / "run", until="find", listener=notes)
    assert notes.tasks == []


def test_missing_split_is_told_before_the_model_is_loaded(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "load", no_model)
    path = tmp_path / "train-only.jsonl"
    path.write_text("".join(json.dumps({"text": TEXTS["benign"].format(n), "split": "train"}) + "\n" for n in range(9)))
    with pytest.raises(SafetyNeuronsError, match="test split"):
        run(tmp_path / "run", given | {"benign": str(path)})
