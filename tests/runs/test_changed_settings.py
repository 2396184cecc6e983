"""Settings that are changed on a run: those for speed redo nothing, and what the others replace is kept."""

from pathlib import Path
from typing import Any

import pytest

from builders.listeners import Recorder
from builders.runs import contents, lines_of, no_model, results_of
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import file_sha256
from safety_neurons.experiments.dose_response import dose_response
from safety_neurons.runs import context as context_module
from safety_neurons.runs.folder import COMMON, SPEED, RunFolder, changed_settings
from safety_neurons.runs.guard import fit_and_keep
from safety_neurons.runs.opened import opened
from safety_neurons.runs.pipeline import run
from safety_neurons.settings import Settings

FASTER: list[dict[str, Any]] = [
    {"batch_size": 1},
    {"batch_size": 64},
    {"device": None},
    {"device_map": "auto"},
    {"tune": {"accumulate": 4}},
    {"tune": {"gradient_checkpointing": True}},
    {"tune": {"checkpoint_every": 1}},
]


def without_kept(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if not name.startswith("replaced")}


@pytest.mark.parametrize("change", FASTER, ids=str)
def test_finished_run_stays_finished_when_only_its_speed_is_changed(
    finished: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(context_module, "load", no_model)
    before = contents(finished)
    notes = Recorder()
    run(finished, change, listener=notes)
    assert contents(finished) == before
    assert notes.tasks == []
    assert any("up to date" in said for said in notes.said)


def test_every_setting_for_speed_is_one_of_the_settings() -> None:
    values = Settings().model_dump()
    for path in SPEED:
        section, _, name = path.rpartition(".")
        assert name in (values[section] if section else values)
    assert not set(SPEED) & set(COMMON)


@pytest.mark.parametrize(
    ("stop_in", "after"), [("base, none: harmful", 1), ("corpus: refusals", 5), ("tuning", 1), ("cells of the grid", 2)]
)
def test_killed_run_goes_on_with_another_batch_size(
    whole: Path, given: dict[str, Any], tmp_path: Path, generated: list[str], stop_in: str, after: int
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, given, listener=Recorder(stop_in, after))
    answers, finished = lines_of(folder / "responses.jsonl"), (folder / "neurons.safetensors").read_bytes()
    notes = Recorder()
    found = run(folder, {"batch_size": 3}, listener=notes)
    assert [said for said in notes.said if "batch_size: 4, now 3" in said and "are kept" in said]
    assert not any("redone" in said for said in notes.said)
    assert not (folder / "replaced").exists()
    assert (folder / "neurons.safetensors").read_bytes() == finished
    kept = lines_of(folder / "responses.jsonl")
    assert kept[: len(answers)] == answers
    assert len(generated) == len(kept) == len({line["key"] for line in kept}), "an answer was generated twice"
    # Float32 rounds too little to change a greedy answer of a tiny model, but refusals are drawn batch by batch.
    expected = results_of(whole)
    assert results_of(folder)["rows"] == expected["rows"]
    base = [
        [cell for cell in one["evaluation"]["cells"] if cell["defense"] == "none"]
        for one in (expected, results_of(folder))
    ]
    assert base[0] == base[1]
    assert found.training is not None
    again = Recorder()
    run(folder, {"batch_size": 4}, listener=again)
    assert again.tasks == []


def test_measurements_are_kept_for_another_batch_size(finished: Path) -> None:
    dose_response(finished, [1.0])
    kept = {name: (finished / name).read_bytes() for name in ("responses.jsonl", "measurements.jsonl")}
    first = results_of(finished)["dose_response"]
    dose_response(finished, [1.0], {"batch_size": 3})
    again = results_of(finished)["dose_response"]
    assert again.pop("settings")["batch_size"] == 3
    assert first.pop("settings")["batch_size"] != 3
    assert again == first
    assert {name: (finished / name).read_bytes() for name in kept} == kept


@pytest.mark.parametrize(
    ("change", "words", "redone"),
    [
        ({"find": {"percent": 10.0}}, "find.percent: 20.0, now 10.0", "find, explain, calibrate, tune, evaluate"),
        ({"tune": {"learning_rate": 0.02}}, "tune.learning_rate: 0.01, now 0.02", "tune, evaluate"),
        (
            {"calibrate": {"alpha_conformity": 1.0}},
            "calibrate.alpha_conformity: 4.0, now 1.0",
            "calibrate, tune, evaluate",
        ),
        ({"evaluate": {"attacks": ["direct"]}}, "evaluate.attacks: direct prefill, now direct", "evaluate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_run_as_it_was_is_kept_before_a_finished_stage_is_redone(
    finished: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str, redone: str
) -> None:
    before = contents(finished)
    notes = Recorder()
    run(finished, change, listener=notes)
    assert f"Settings changed ({words}), so these stages are redone: {redone}." in notes.said
    kept = finished / "replaced" / "1"
    assert f"The run as it was is kept in {kept}." in notes.said
    assert contents(kept) == {name: content for name, content in before.items() if name != ".lock"}
    # It is a run of its own, and finished.
    monkeypatch.setattr(context_module, "load", no_model)
    run(kept)
    assert contents(kept) == {**before, ".lock": b""}
    run(finished)
    assert not (finished / "replaced" / "2").exists()


def test_kept_run_is_not_changed_by_what_comes_after(finished: Path) -> None:
    run(finished, {"tune": {"learning_rate": 0.02}})
    before = contents(finished / "replaced" / "1")
    run(finished, {"tune": {"learning_rate": 0.03}})
    assert contents(finished / "replaced" / "1") == before
    assert {path.name for path in (finished / "replaced").iterdir()} == {"1", "2"}
    digests = {file_sha256(folder / "delta.safetensors") for folder in (finished, *(finished / "replaced").iterdir())}
    assert len(digests) == 3


def test_stages_that_a_command_leaves_out_of_date_are_named(finished: Path) -> None:
    before = contents(finished)
    notes = Recorder()
    run(finished, {"find": {"percent": 10.0}}, until="find", listener=notes)
    assert any(
        "redone: find; these are out of date until a command redoes them: explain, calibrate, tune, evaluate." in said
        for said in notes.said
    )
    kept = contents(finished / "replaced" / "1")
    assert kept["delta.safetensors"] == before["delta.safetensors"]
    assert kept["results.json"] == before["results.json"]


def test_training_that_was_stopped_is_kept_when_its_settings_are_changed(given: dict[str, Any], tmp_path: Path) -> None:
    given["tune"]["checkpoint_every"] = 1
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", given, listener=Recorder("tuning", 2))
    checkpoint = RunFolder(tmp_path / "run").checkpoint
    before = checkpoint.read_bytes()
    with pytest.warns(UserWarning, match="Training starts anew"):
        run(tmp_path / "run", {"tune": {"learning_rate": 0.02}}, until="tune")
    kept = tmp_path / "run" / "replaced" / "1"
    assert (kept / checkpoint.name).read_bytes() == before
    run(kept, until="tune")
    run(tmp_path / "alone", given, until="tune")
    assert file_sha256(kept / "corpus.jsonl") == file_sha256(tmp_path / "alone" / "corpus.jsonl")
    assert results_of(kept)["training"]["loss"] == results_of(tmp_path / "alone")["training"]["loss"]


def test_nothing_is_kept_where_nothing_is_replaced(finished: Path, found: Path) -> None:
    run(found, {"find": {"percent": 20.0}, "tune": {"learning_rate": 0.02}}, until="explain")
    assert not (found / "replaced").exists()
    with pytest.raises(SafetyNeuronsError, match="device"):
        run(finished, {"device": "no-such-device", "find": {"percent": 10.0}})
    assert not (finished / "replaced").exists()
    (finished / "delta.safetensors").unlink()
    run(finished)
    assert not (finished / "replaced").exists()


def test_replaced_guard_is_kept(found: Path) -> None:
    options: dict[str, Any] = {"guard": {"percent": 20.0, "alpha": 1.0}}
    for change, kept in ((options, 0), (options, 0), ({"batch_size": 3, **options}, 0)):
        with opened(found, change, None, "") as context:
            fit_and_keep(context)
        assert len(list(found.glob("replaced/*"))) == kept
    before = (found / "guard.safetensors").read_bytes()
    notes = Recorder()
    with opened(found, {"guard": {"percent": 20.0, "alpha": 2.0}}, notes, "") as context:
        fit_and_keep(context)
    assert (found / "replaced" / "1" / "guard.safetensors").read_bytes() == before
    assert any("The run as it was is kept" in said for said in notes.said)


def test_changed_settings_are_named_with_both_values() -> None:
    one, other = (Settings.checked(values).model_dump(mode="json") for values in ({}, {"tune": {"kl": 0.5}, "seed": 3}))
    assert changed_settings(one, other) == {"seed": "seed: 0, now 3", "tune.kl": "tune.kl: 2.0, now 0.5"}
    assert changed_settings(one, one) == {}
