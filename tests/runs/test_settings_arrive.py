"""One settings object from option to result: what functions received is what the record and the results show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.commands import inside
from builders.listeners import Recorder
from builders.runs import results_of
from safety_neurons.core.config import Config
from safety_neurons.core.files import read_json
from safety_neurons.experiments import auto_tune as auto_tune_module
from safety_neurons.experiments.adaptive import adaptive
from safety_neurons.experiments.auto_tune import Space, auto_tune, nested
from safety_neurons.experiments.dose_response import dose_response
from safety_neurons.experiments.guard_test import guard_run
from safety_neurons.experiments.lengths import lengths
from safety_neurons.experiments.seeds import repeat_tuning
from safety_neurons.experiments.smallest_intervention import search
from safety_neurons.runs import context as context_module
from safety_neurons.runs import evaluation as evaluation_module
from safety_neurons.runs import guard as guard_module
from safety_neurons.runs import workers as workers_module
from safety_neurons.runs.folder import overridden
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.targets import evaluate
from safety_neurons.settings import Settings, without_permissions

# A change in each section.
OPTIONS: dict[str, dict[str, Any]] = {
    "find": {"percent": 25.0},
    "calibrate": {"prompt_positions": 2, "alpha_rejection": 2.0},
    "guard": {"percent": 15.0, "alpha": 2.0},
    "tune": {"epochs": 2, "warmup": 0.3},
    "evaluate": {"prompts": 2, "answer_tokens": 3},
}

Seen = list[tuple[str, Any]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What the functions that do the work receive, by the name of the settings' section."""
    noted: Seen = []

    def spy(module: Any, name: str, *wanted: tuple[str, Callable[..., Any]]) -> None:
        original = getattr(module, name)

        def function(*arguments: Any, **options: Any) -> Any:
            noted.extend((section, read(*arguments, **options)) for section, read in wanted)
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, function)

    spy(workers_module, "score_neurons", ("find", lambda *arguments, **_: arguments[3]))
    spy(
        context_module,
        "calibrate",
        ("calibrate", lambda *arguments, **_: arguments[2]),
        ("alpha", lambda *_, toward, alpha: (toward, alpha)),
    )
    spy(workers_module, "tune", ("tune", lambda *arguments, **_: arguments[3]))
    spy(auto_tune_module, "tune", ("trial", lambda *arguments, **_: arguments[3]))
    spy(
        guard_module,
        "fit_guard",
        ("guard", lambda *arguments, **_: arguments[5]),
        ("calibrate", lambda *_, calibration, **__: calibration),
    )
    spy(evaluation_module, "answer_together", ("evaluate", lambda *arguments: arguments[2].evaluate))
    spy(context_module.judging, "ask", ("answer_tokens", lambda *_, max_new_tokens, **__: max_new_tokens))
    return noted


def check(seen: Seen, settings: dict[str, Any], *needed: str) -> None:
    """Every function received what these settings say, and the `needed` ones were called."""
    assert set(needed) <= {name for name, _ in seen}
    for name, received in seen:
        if name not in settings and name == "calibrate":
            # The experiment says that it does not use them.
            continue
        if isinstance(received, Config) and name != "trial":
            own = without_permissions({name: received.model_dump(mode="json")})
            assert own == {name: settings[name]}, name
        elif name == "alpha" and "alpha" in needed:
            toward, alpha = received
            assert alpha == settings["calibrate"][f"alpha_{toward}"]
        elif name == "answer_tokens":
            assert received in (settings["evaluate"]["answer_tokens"], settings["tune"]["answer_tokens"])
    for section in OPTIONS.keys() & settings.keys():
        assert settings[section].items() >= OPTIONS[section].items(), section


@pytest.mark.parametrize(
    ("until", "needed"),
    [
        ("find", ("find",)),
        ("calibrate", ("find", "calibrate", "alpha", "answer_tokens")),
        ("tune", ("find", "tune", "calibrate", "alpha")),
        ("evaluate", ("find", "tune", "evaluate")),
    ],
)
def test_stages(finished: Path, seen: Seen, until: str, needed: tuple[str, ...]) -> None:
    run(finished, OPTIONS, until=until)
    results = results_of(finished)
    check(seen, results["run"]["settings"], *needed)
    assert read_json(finished / "run.json")["settings"] == results["run"]["settings"]


EXPERIMENTS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "guard": (lambda path: guard_run(path, OPTIONS), ("guard", "calibrate", "answer_tokens")),
    # Both choose the strength.
    "dose_response": (lambda path: dose_response(path, [1.0], OPTIONS), ("find", "calibrate")),
    "search": (lambda path: search(path, OPTIONS, trials=1), ("find",)),
    "adaptive": (lambda path: adaptive(path, OPTIONS), ("find", "tune", "alpha")),
    "lengths": (lambda path: lengths(path, OPTIONS, tokens=(2, 3), requests=1), ("find", "tune")),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments(finished: Path, seen: Seen, name: str) -> None:
    command, needed = EXPERIMENTS[name]
    command(finished)
    check(seen, results_of(finished)[name]["settings"], *needed)


def test_repeated_tuning(finished: Path, seen: Seen) -> None:
    """Each model is asked what the evaluation asks; the base first, then the trainings."""
    repeat_tuning(finished, OPTIONS, seeds=2)
    settings = results_of(finished)["seeds"]["settings"]
    asked = [received.model_dump(mode="json") for name, received in seen if name == "evaluate"]
    assert [one["defenses"] for one in asked] == [["none"], ["safetuning"], ["safetuning"]]
    own = settings["evaluate"]
    for one in asked:
        assert one | {"defenses": own["defenses"], "judges": own["judges"]} == own
        assert one["judges"] == [own["judge"]]
    check([one for one in seen if one[0] != "evaluate"], settings, "find", "tune", "alpha")
    assert sum(name == "tune" for name, _ in seen) == 2


def test_an_experiments_options_leave_the_runs_settings_alone(finished: Path, seen: Seen) -> None:
    """Its section shows them, where nothing that the run did is done again."""
    before = read_json(finished / "run.json")
    options = {"calibrate": OPTIONS["calibrate"], "guard": OPTIONS["guard"]}
    guard_run(finished, options, answers=False)
    assert read_json(finished / "run.json") == before
    section = results_of(finished)["guard"]["settings"]
    assert dict(seen)["guard"].model_dump(mode="json") == section["guard"]
    assert dict(seen)["calibrate"].model_dump(mode="json") == section["calibrate"]
    assert section["guard"]["percent"] == 15.0
    assert section["calibrate"]["prompt_positions"] == 2


def test_a_search_and_the_tuning_that_it_leads_to(finished: Path, seen: Seen) -> None:
    auto_tune(finished, OPTIONS, trials=2, space=Space(("contrast", "write-contrast"), (10.0, 40.0)))
    results = results_of(finished)
    section, record = results["auto"], results["run"]["settings"]
    tried = [received.model_dump(mode="json") for name, received in seen if name == "trial"]
    assert len(tried) == len(section["trials"]) == 2
    options = Settings.checked(OPTIONS).model_dump(mode="json", exclude_unset=True)
    for received, trial in zip(tried, section["trials"], strict=True):
        assert received.items() >= (options["tune"] | nested(trial["settings"])["tune"]).items()
    (final,) = [received for name, received in seen if name == "tune"]
    chosen = next(trial for trial in section["trials"] if trial["number"] == section["chosen"])
    shown = nested(chosen["settings"])
    kept = without_permissions({"tune": final.model_dump(mode="json")})["tune"]
    assert kept == record["tune"] == section["settings"]["tune"]
    assert record["tune"].items() >= (options["tune"] | shown["tune"]).items()
    assert record["find"].items() >= overridden(options, shown)["find"].items()
    # The trial that was chosen is what was trained.
    assert without_permissions({"tune": tried[section["chosen"]]})["tune"] == record["tune"]


def test_options_of_the_search_on_the_command_line(finished: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--auto", "--trials", "1", "--tune.epochs", "3")
    assert inside(monkeypatch, "tune", str(finished), *options) == 0
    assert {received.epochs for name, received in seen if name in ("trial", "tune")} == {3}
    assert {name for name, _ in seen} >= {"trial", "tune"}
    results = results_of(finished)
    assert results["run"]["settings"]["tune"]["epochs"] == results["auto"]["settings"]["tune"]["epochs"] == 3
    # Two passes over the corpus in batches became three.
    steps = -(-sum(results["training"]["corpus"].values()) // results["run"]["settings"]["tune"]["batch_size"])
    assert len(results["training"]["loss"]) == 3 * steps


def test_targets_side_by_side(found: Path, given: dict[str, Any], seen: Seen, tmp_path: Path) -> None:
    options = {name: values for name, values in OPTIONS.items() if name != "evaluate"} | {
        name: given[name] for name in ("device", "dtype", "harmful", "benign", "borderline", "contrast")
    }
    asked: dict[str, Any] = {"defenses": ("none", "guard"), "attacks": ("direct",), **OPTIONS["evaluate"]}
    evaluate([found, given["model"]], options, out=tmp_path / "out", **asked)
    received = [one for name, one in seen if name == "evaluate"]
    assert len(received) == 2
    for one in received:
        assert (one.prompts, one.answer_tokens) == (2, 3)
    written = read_json(tmp_path / "out" / "evaluation.json")
    assert (written["answer_tokens"], written["prompts"]["harmful"]) == (3, 2)
    record = read_json(found / "run.json")["settings"]
    assert dict(seen)["find"].model_dump(mode="json") == record["find"]
    assert record["find"]["percent"] == 25.0
    assert dict(seen)["guard"].percent == 15.0


def test_a_guard_is_fitted_again_for_every_option_that_it_depends_on(finished: Path, seen: Seen) -> None:
    both = {"evaluate": {"defenses": ["none", "guard"], "attacks": ["direct"]}}
    run(finished, both, until="evaluate")
    run(finished, {"calibrate": {"prompt_positions": 2}}, until="evaluate")
    received = [one.prompt_positions for name, one in seen if name == "calibrate"]
    assert received[-1] == results_of(finished)["run"]["settings"]["calibrate"]["prompt_positions"] == 2


def test_options_that_a_finished_stage_does_not_use_are_said_not_to_be_kept(finished: Path) -> None:
    notes = Recorder()
    before = read_json(finished / "run.json")
    run(finished, {"evaluate": {"prompts": 5}}, until="find", listener=notes)
    assert any("not kept: evaluate.prompts: 40, now 5" in said for said in notes.said)
    assert read_json(finished / "run.json") == before


def test_every_section_of_the_settings_is_watched() -> None:
    sections = {name for name, field in Settings.model_fields.items() if isinstance(field.default, Config)}
    assert sections - {"explain"} == set(OPTIONS)
