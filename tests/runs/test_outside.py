"""What the record of a run names outside of its folder is said once, before it is used, and by no finished run."""

from pathlib import Path
from typing import Any

import pytest

from builders.listeners import Recorder
from safety_neurons.core import trust as trust_module
from safety_neurons.experiments.auto_tune import Space, auto_tune
from safety_neurons.experiments.dose_response import dose_response
from safety_neurons.runs.folder import STAGES, merged_settings
from safety_neurons.runs.outside import _USES, LOAD, tell_outside
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.targets import evaluate
from safety_neurons.settings import Settings

# By path: what a record can name, and a stage that uses it.
FOREIGN: dict[str, tuple[Any, str]] = {
    "model": ("someone/model", "find"),
    "adapter": ("someone/adapter", "find"),
    "chat_template": ("/home/me/template.jinja", "find"),
    "harmful": ("/home/me/secrets.txt", "find"),
    "benign": ("~/secrets.csv", "explain"),
    "borderline": ("./secrets.json", "tune"),
    "contrast": ("/home/me/secrets.jsonl", "tune"),
    "data_dir": ("/home/me", "find"),
    "show_responses": (True, "evaluate"),
    "find.score": ("/home/me/theirs.py:SCORE", "find"),
    "find.other_model": ("someone/other", "find"),
    "tune.corpus": ("/home/me/corpus.jsonl", "tune"),
    "evaluate.judge": ("/home/me/theirs.py:JUDGE", "calibrate"),
    "evaluate.attacks": (["direct", "file:path=/home/me/attacks.jsonl"], "evaluate"),
    "evaluate.defenses": (["none", "/home/me/theirs.py:DEFENSE"], "evaluate"),
    "evaluate.judges": (["strongreject:endpoint=http://there.example/v1,model=m"], "evaluate"),
    "evaluate.on": ("jailbreakbench:/home/me/secrets.txt", "evaluate"),
    "evaluate.judge_errors": ("/home/me/errors.json", "evaluate"),
    "evaluate.tasks": (["hellaswag"], "evaluate"),
    "evaluate.gsm8k": ("/home/me/problems.jsonl", "evaluate"),
    "evaluate.task_folder": ("/home/me/tasks", "evaluate"),
    "evaluate.preference_judge": ("someone/judge", "evaluate"),
    "evaluate.preference_endpoint": ("http://there.example/v1", "evaluate"),
    "evaluate.questions": ("/home/me/questions.jsonl", "evaluate"),
}


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_module, "_recorded", set())
    monkeypatch.setattr(trust_module, "_named", set(trust_module._named))


def nested(path: str, value: Any) -> dict[str, Any]:
    section, _, name = path.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def told(stored: dict[str, Any], given: dict[str, Any], *uses: str) -> list[str]:
    notes = Recorder()
    tell_outside(Path("theirs"), stored, given, merged_settings(stored, given), uses, notes)
    return notes.said


@pytest.mark.parametrize("path", FOREIGN)
def test_what_the_record_names_is_said_where_a_stage_uses_it(path: str) -> None:
    value, stage = FOREIGN[path]
    stored = nested(path, value)
    (said,) = told(stored, {}, stage)
    assert said.startswith("The record of theirs, not this call, names what is outside of the folder: ")
    named = value[-1] if isinstance(value, list) else value
    for part in str(named).split(":") if path == "evaluate.on" else [str(named)]:
        assert (part in said) == (part not in ("True", "jailbreakbench"))
    assert f" {path} " in said
    # What this call names, what is the default, and what no stage uses, is not said.
    assert told(stored, stored, *STAGES) == []
    section, _, name = path.rpartition(".")
    defaults = Settings().model_dump(mode="json")
    assert told(nested(path, (defaults[section] if section else defaults)[name]), {}, stage) == []
    assert told(stored, {}, "report") == []
    assert told({}, {}, *STAGES, LOAD) == []


def test_every_setting_that_can_name_something_outside_is_among_them() -> None:
    """A new path, address or model has to be added, or to be known as harmless here."""
    assert set(_USES) == set(FOREIGN)
    harmless = {"column", "device", "system", "write_matrices"}
    texts = {
        path
        for section in ("", "find", "explain", "calibrate", "guard", "tune", "evaluate")
        for path, field in (
            (f"{section}.{name}" if section else name, field)
            for name, field in type(getattr(Settings(), section) if section else Settings()).model_fields.items()
        )
        if "str" in str(field.annotation) or "Path" in str(field.annotation)
    }
    assert texts - harmless - {"tune.report_to"} == set(FOREIGN) - {"show_responses"}


def test_names_that_everybody_has_are_not_said() -> None:
    known = {
        "model": "qwen3-0.6b",
        "harmful": "advbench",
        "evaluate": {
            "attacks": ["direct", "prefill"],
            "defenses": ["none", "smoothllm:copies=4"],
            "on": "harmful:benign",
        },
    }
    assert told(known, {}, *STAGES) == []


def test_trackers_of_a_record_are_ignored_and_that_is_said() -> None:
    stored = {"tune": {"report_to": ["wandb"]}}
    (said,) = told(stored, {}, "tune")
    assert "send the training's progress to trackers (tune.report_to), which no record can permit" in said
    assert told(stored, {}, "find") == []


def test_it_is_said_once_and_before_anything_is_loaded(finished: Path) -> None:
    notes = Recorder()
    run(finished, {"find": {"percent": 25.0}}, until="explain", listener=notes)
    assert len([said for said in notes.said if "not this call" in said]) == 1
    loaded = next(place for place, said in enumerate(notes.said) if "on cpu" in said)
    assert "not this call" in "".join(notes.said[:loaded])
    again = Recorder()
    run(finished, {}, until="explain", listener=again)
    assert again.said == ["Done already: find, explain."]


def test_commands_that_open_a_run_several_times_say_it_once(finished: Path) -> None:
    for command in (
        lambda notes: dose_response(finished, [1.0], listener=notes),
        lambda notes: auto_tune(finished, {}, trials=1, space=Space(("contrast",)), listener=notes),
        lambda notes: evaluate([finished], attacks=("direct",), prompts=1, out=finished / "out", listener=notes),
    ):
        notes = Recorder()
        command(notes)
        assert len([said for said in notes.said if "not this call" in said]) == 1
