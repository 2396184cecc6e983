"""The search for tuning's settings on a tiny run: what it tries and takes, and that it can be killed."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.commands import inside
from builders.listeners import Recorder
from builders.runs import lines_of, section_of
from safety_neurons.core.errors import DivergedError, SafetyNeuronsError
from safety_neurons.core.files import read_json
from safety_neurons.experiments import auto_tune as auto_tune_module
from safety_neurons.experiments.auto_tune import (
    Objectives,
    Space,
    Trial,
    auto_tune,
    choose,
    front,
    nested,
    own_settings,
)
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.report.results import RunResults
from safety_neurons.runs import pipeline as pipeline_module
from safety_neurons.runs.folder import merged_settings
from safety_neurons.tuning.config import TuningConfig
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta

SPACE = Space(scores=("write-contrast", "contrast"), percent=(5.0, 40.0), learning_rate=(1e-3, 0.05))
# After four random ones, so that one follows from what was seen before.
TRIALS = 5


def search(folder: Path, *given: Any, space: Space = SPACE, **options: Any) -> dict[str, Any]:
    """The section that a search in the small space leaves."""
    found: dict[str, Any] = section_of("auto", auto_tune, folder, *given, space=space, **options)
    return found


@pytest.fixture(scope="module")
def searched_once(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("searched") / "run"
    return folder, search(folder, inputs, trials=TRIALS)


@pytest.fixture
def searched(searched_once: tuple[Path, dict[str, Any]], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of a run that was searched and tuned, and its section."""
    folder, section = searched_once
    return Path(shutil.copytree(folder, tmp_path / "searched")), section


def trials_of(section: dict[str, Any]) -> list[Trial]:
    return [Trial(one["number"], one["settings"], Objectives(**one["objectives"])) for one in section["trials"]]


def test_the_first_trial_is_the_runs_own_and_the_others_lie_in_the_space(
    searched: tuple[Path, dict[str, Any]], given: dict[str, Any]
) -> None:
    _, section = searched
    first, *others = section["trials"]
    assert first["settings"] == own_settings(merged_settings({}, given))
    assert first["settings"]["find.percent"] == 20.0
    assert [one["number"] for one in section["trials"]] == list(range(TRIALS))
    assert len({str(one["settings"]) for one in section["trials"]}) == TRIALS
    for one in others:
        assert one["settings"]["find.score"] in SPACE.scores
        assert SPACE.percent[0] <= one["settings"]["find.percent"] <= SPACE.percent[1]
        assert SPACE.learning_rate[0] <= one["settings"]["tune.learning_rate"] <= SPACE.learning_rate[1]
    assert section["base"]["over_refusal"] == 0
    assert section["left_out"] == 0


def test_the_run_is_tuned_with_the_chosen_settings(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, section = searched
    tried = trials_of(section)
    chosen = choose(tried, section["max_over_refusal"])
    assert section["chosen"] == chosen.number
    assert section["front"] == [one.number for one in front(tried)]
    assert own_settings(merged_settings({}, read_json(folder / "run.json")["settings"])) == chosen.settings
    results = read_json(folder / "results.json")
    assert results["auto"] == section
    assert results["training"]["loss"]
    neurons = NeuronSet.load(folder / "neurons.safetensors")
    assert neurons.provenance.percent == chosen.settings["find.percent"]
    assert neurons.provenance.score == chosen.settings["find.score"]
    assert NeuronDelta.load(folder / "delta.safetensors").parameters == results["training"]["trainable_parameters"]


def test_one_seed_gives_the_same_trials_and_another_one_others(
    searched: tuple[Path, dict[str, Any]], given: dict[str, Any], tmp_path: Path
) -> None:
    _, section = searched
    assert search(tmp_path / "new", given, trials=TRIALS) == section
    other = search(tmp_path / "other", given | {"seed": 1}, trials=2)
    assert other["trials"][1]["settings"] != section["trials"][1]["settings"]


@pytest.mark.parametrize(
    ("where", "after"),
    [(r"^tuning .* neurons \(", 8), (r"^tuning .* neurons$", 2)],
    ids=["in a trial", "after the search"],
)
def test_a_killed_search_goes_on_to_the_same_end(
    where: str,
    after: int,
    searched: tuple[Path, dict[str, Any]],
    given: dict[str, Any],
    tmp_path: Path,
) -> None:
    folder, section = searched
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        auto_tune(killed, given, trials=TRIALS, space=SPACE, listener=Recorder(where, after))
    done = len(lines_of(killed / "trials.jsonl"))
    again = Recorder()
    assert search(killed, given, trials=TRIALS, listener=again) == section
    assert sum(task.startswith("tuning") and task.endswith(")") for task in again.tasks) == TRIALS - done
    assert (killed / "trials.jsonl").read_bytes() == (folder / "trials.jsonl").read_bytes()
    assert (killed / "delta.safetensors").read_bytes() == (folder / "delta.safetensors").read_bytes()


def test_a_finished_search_tries_nothing_again(searched: tuple[Path, dict[str, Any]]) -> None:
    """Though the run has the chosen settings by now, which the search did not start from."""
    folder, section = searched
    trials, responses = ((folder / name).read_bytes() for name in ("trials.jsonl", "responses.jsonl"))
    again = Recorder()
    assert search(folder, trials=TRIALS, listener=again) == section
    assert (folder / "trials.jsonl").read_bytes() == trials
    assert (folder / "responses.jsonl").read_bytes() == responses
    assert not [task for task in again.tasks if task.startswith("tuning") and task.endswith(")")]


def test_settings_that_are_asked_for_begin_another_search(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, section = searched
    first = search(folder, {"find": {"percent": 17.0}}, trials=1)["trials"][0]
    chosen = section["trials"][section["chosen"]]["settings"]
    assert first["settings"] == chosen | {"find.percent": 17.0}


def test_trials_that_diverge_are_left_out(
    given: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tune = auto_tune_module.tune

    def diverges(model: ChatModel, neurons: NeuronSet, corpus: Corpus, config: TuningConfig, **options: Any) -> Any:
        if config.learning_rate == 0.02:
            raise DivergedError("Training diverged: the loss is no longer a number.")
        return tune(model, neurons, corpus, config, **options)

    monkeypatch.setattr(auto_tune_module, "tune", diverges)
    notes = Recorder()
    with pytest.raises(SafetyNeuronsError, match="None of the 1 trials could be trained"):
        auto_tune(tmp_path / "run", given, trials=1, space=SPACE)
    section = search(tmp_path / "run", given, trials=2, listener=notes)
    assert [one["number"] for one in section["trials"]] == [1]
    assert (section["left_out"], section["chosen"]) == (1, 1)
    assert [line["objectives"] is None for line in lines_of(tmp_path / "run" / "trials.jsonl")] == [True, False]


def test_trials_without_neurons_are_left_out(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where harmful and benign prompts rank the same neurons first, their difference is empty."""
    top = ScoredNeurons.top

    def same_on_both_sides(self: ScoredNeurons, percent: float, *options: Any) -> NeuronSet:
        found = top(self, percent, *options)
        nothing = tuple(layer[:0] for layer in found.rejection)
        return replace(found, rejection=nothing, conformity=nothing) if percent == 0.01 else found

    monkeypatch.setattr(ScoredNeurons, "top", same_on_both_sides)
    notes = Recorder()
    space = replace(SPACE, percent=(0.01, 0.01))
    section = search(tmp_path / "run", given, trials=2, space=space, listener=notes)
    assert [one["number"] for one in section["trials"]] == [0]
    assert any("finds no neurons at 0.01%" in said for said in notes.said)


def test_trials_are_tuned_as_the_run_will_be(given: dict[str, Any], tmp_path: Path) -> None:
    """With its scope and selection, and its pass and scale selected alike."""
    given["find"] |= {"scope": "model", "selection": "none"}
    section = search(tmp_path / "run", given, trials=1)
    assert section["tuned"] == section["trials"][0]["objectives"]


def test_settings_by_path_are_nested() -> None:
    assert nested({"find.score": "wanda", "tune.kl": 0.1, "find.percent": 2}) == {
        "find": {"score": "wanda", "percent": 2},
        "tune": {"kl": 0.1},
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trials": 0}, "at least one trial"),
    ],
    ids=str,
)
def test_bad_options_are_errors_before_anything_is_done(
    given: dict[str, Any], tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(SafetyNeuronsError, match=told):
        auto_tune(tmp_path / "run", given, **options)
    assert not (tmp_path / "run").exists()


def test_other_neurons_than_the_searched_ones_are_an_error(given: dict[str, Any], tmp_path: Path) -> None:
    given["tune"]["percent"] = 50
    with pytest.raises(SafetyNeuronsError, match=r"Omit tune\.percent"):
        auto_tune(tmp_path / "run", given, trials=1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scores": ()}, "at least one score"),
        ({"scores": ("gradient", "gradeint")}, "gradeint"),
        ({"scores": ("change",)}, "compares two models"),
        ({"percent": (0.0, 1.0)}, "percent"),
        ({"percent": (2.0, 1.0)}, "percent"),
        ({"learning_rate": (-1e-3, 1e-3)}, "learning_rate"),
    ],
    ids=str,
)
def test_bad_spaces_are_errors(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SafetyNeuronsError, match=told):
        Space(**options)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--trials", "3"], "add --auto"),
        (["--scores", "gradient"], "add --auto"),
        (["--auto", "--trials", "0"], "trials"),
        (["--auto", "--trials", "many"], "trials"),
        (["--auto", "--tune.max-over-refusal", "2"], "max-over-refusal"),
        (["--auto", "--scores", "gradeint"], "gradeint"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_one_paragraph_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline_module, "_run", lambda *_: pytest.fail("the run began"))
    assert inside(monkeypatch, "tune", "run", *arguments) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert "\n\n" not in shown.strip()
    assert told in " ".join(shown.replace("_", "-").split())
    assert list(tmp_path.iterdir()) == []


def test_options_arrive_and_the_trials_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], searched: tuple[Path, dict[str, Any]]
) -> None:
    folder, section = searched
    asked: list[dict[str, Any]] = []

    def fake(_path: Path, _given: dict[str, Any], **options: Any) -> RunResults:
        asked.append(options)
        return RunResults.of(read_json(folder / "results.json"))

    monkeypatch.setattr(auto_tune_module, "auto_tune", fake)
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ("--auto", "--trials", "3", "--scores", "contrast", "gradient")
    assert inside(monkeypatch, "tune", str(folder), *arguments) == 0
    assert asked[0]["trials"] == 3
    assert asked[0]["space"] == Space(scores=("contrast", "gradient"))
    shown = capsys.readouterr().out
    # In an ordinary terminal nothing is cut off.
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert re.search(rf"^{section['chosen']},[^\n]*\n(?:chosen|[^\n]*, chosen)", shown, re.MULTILINE)
    assert f"Chosen: trial {section['chosen']}" in shown
