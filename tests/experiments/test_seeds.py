"""Tuning repeated with several seeds on a tiny run: what is trained, what is kept, and what is compared."""

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.commands import inside
from builders.listeners import Recorder
from builders.runs import lines_of, section_of
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.experiments.seeds import Budget, repeat_tuning
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs import kept_deltas
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.folder import RunFolder
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta

SMALL: dict[str, Any] = {
    "tune": {"refusals": 6, "benign": 4, "borderline": 0, "contrast": 0, "answer_tokens": 3, "epochs": 1},
    "evaluate": {"attacks": ["direct", "prefill"]},
}


def repeat(folder: Path, **options: Any) -> dict[str, Any]:
    """The section that the experiment leaves."""
    found: dict[str, Any] = section_of("seeds", repeat_tuning, folder, SMALL, **options)
    return found


def trainings(recorder: Recorder) -> list[str]:
    """The trainings that were done, the run's own aside."""
    return [
        task.removeprefix("tuning ") for task in recorder.tasks if task.startswith(("tuning found", "tuning random"))
    ]


def group_of(section: dict[str, Any], subject: str) -> dict[str, Any]:
    (found,) = [one for one in section["groups"] if one["subject"] == subject]
    return found


@pytest.fixture(scope="module")
def repeated_once(found_once: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = Path(shutil.copytree(found_once, tmp_path_factory.mktemp("repeated") / "run"))
    return folder, repeat(folder, seeds=2, with_random=True)


@pytest.fixture
def repeated(repeated_once: tuple[Path, dict[str, Any]], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of a run that was tuned with two seeds, and its section."""
    folder, section = repeated_once
    return Path(shutil.copytree(folder, tmp_path / "repeated")), section


def test_the_run_is_the_first_training_and_all_differ(repeated: tuple[Path, dict[str, Any]]) -> None:
    folder, section = repeated
    found, random = group_of(section, "found"), group_of(section, "random")
    assert [one["seed"] for one in found["trainings"]] == [one["seed"] for one in random["trainings"]] == [0, 1]
    own = NeuronDelta.load(folder / "delta.safetensors")
    assert found["trainings"][0]["digest"] == own.digest
    digests = [one["digest"] for group in (found, random) for one in group["trainings"]]
    assert len(set(digests)) == 4
    kept = [NeuronDelta.load(path) for path in (folder / "deltas").glob("*.safetensors")]
    assert {one.digest for one in kept} == set(digests) - {own.digest}
    sets = {json.dumps(one.neurons.indices()) for one in kept if one.neurons.provenance.score == "random"}
    assert len(sets) == 2
    ours = NeuronSet.load(folder / "neurons.safetensors")
    for one in kept:
        assert one.neurons.per_layer() == ours.per_layer()


def test_seeds_make_other_corpora_and_one_seed_the_same(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora: list[tuple[int, Corpus]] = []
    corpus_of = kept_deltas.corpus_of

    def noted(run: RunContext) -> Corpus:
        corpora.append((run.settings.seed, corpus_of(run)))
        return corpora[-1][1]

    monkeypatch.setattr(kept_deltas, "corpus_of", noted)
    repeat(found, seeds=3, with_random=True)
    by_seed: dict[int, list[Corpus]] = {}
    for seed, corpus in corpora:
        by_seed.setdefault(seed, []).append(corpus)
    assert {seed: len(found) for seed, found in by_seed.items()} == {0: 1, 1: 2, 2: 2}
    assert all(one == own[0] for own in by_seed.values() for one in own)
    first = [own[0] for own in by_seed.values()]
    assert len({str(one.pairs) for one in first}) == 3
    assert Corpus.load(found / "corpus.jsonl") == by_seed[0][0]


def test_rates_are_those_of_the_trainings(repeated: tuple[Path, dict[str, Any]]) -> None:
    _, section = repeated
    found, random = group_of(section, "found"), group_of(section, "random")
    names = [(one["prompts"], one["attack"]) for one in found["measures"]]
    assert names[:3] == [("harmful", "direct"), ("harmful", "prefill"), ("harmful", "mean")]
    assert len(names) == 5
    assert section["requests"]["harmful"] == 3
    for mine, other in zip(found["measures"], random["measures"], strict=True):
        values = [one["value"] for one in mine["trainings"]]
        if None in values:
            continue
        assert mine["mean"]["value"] == pytest.approx(statistics.fmean(values))
        assert mine["spread"] == pytest.approx(statistics.stdev(values))
        assert mine["before"] == other["before"]
        assert other["against_random"] is None
        # Otherwise it is over the requests that both have scored.
        if not any(one["unscored"] for side in (mine, other) for one in side["trainings"]):
            difference = mine["mean"]["value"] - other["mean"]["value"]
            assert mine["against_random"]["value"] == pytest.approx(difference)


@pytest.mark.parametrize(
    ("where", "after"),
    [("^tuning random", 1), ("^trainings", 2)],
    ids=["in a training", "between trainings"],
)
def test_a_killed_experiment_goes_on_to_the_same_end(
    where: str, after: int, repeated: tuple[Path, dict[str, Any]], found: Path
) -> None:
    folder, section = repeated
    with pytest.raises(KeyboardInterrupt):
        repeat_tuning(found, SMALL, seeds=2, with_random=True, listener=Recorder(where, after))
    assert repeat(found, seeds=2, with_random=True) == section
    for path in (folder / "deltas").glob("*.safetensors"):
        assert (found / "deltas" / path.name).read_bytes() == path.read_bytes()
    assert not list((found / "deltas").glob(".*"))


def test_more_seeds_add_to_the_first(repeated: tuple[Path, dict[str, Any]]) -> None:
    folder, section = repeated
    again = Recorder()
    assert repeat(folder, seeds=2, with_random=True, listener=again) == section
    assert trainings(again) == []
    more = Recorder()
    longer = repeat(folder, seeds=3, with_random=True, listener=more)
    assert trainings(more) == ["found 20% of the neurons, seed 2", "random 20% of the neurons, seed 2"]
    for subject in ("found", "random"):
        assert group_of(longer, subject)["trainings"][:2] == group_of(section, subject)["trainings"]
        for before, after in zip(
            group_of(section, subject)["measures"], group_of(longer, subject)["measures"], strict=True
        ):
            assert after["trainings"][:2] == before["trainings"]


def test_one_seed_has_no_spread_and_says_so(
    repeated: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = repeated
    monkeypatch.setenv("COLUMNS", "250")
    options = ("--tune.epochs", "1", "--evaluate.attacks", "direct", "prefill")
    assert inside(monkeypatch, "experiment", "seeds", str(folder), "--seeds", "1", *options) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "One training says nothing of the spread between trainings" in shown
    assert "found neurons, 20%" in shown


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def replace_by_another(path: Path) -> None:
    (other,) = [one for one in path.parent.glob("*.safetensors") if one != path][:1]
    shutil.copy(other, path)


@pytest.mark.parametrize("spoil", [damage, replace_by_another, Path.unlink], ids=["damaged", "replaced", "lost"])
def test_a_kept_delta_that_is_not_what_was_kept_is_trained_again(
    spoil: Callable[[Path], None], repeated: tuple[Path, dict[str, Any]]
) -> None:
    folder, section = repeated
    path = sorted((folder / "deltas").glob("*.safetensors"))[0]
    before = path.read_bytes()
    spoil(path)
    again = Recorder()
    assert repeat(folder, seeds=2, with_random=True, listener=again) == section
    assert len(trainings(again)) == 1
    assert any(str(path) in said for said in again.said)
    assert path.read_bytes() == before


def test_links_in_a_foreign_folder_are_refused(repeated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = repeated
    path = next((folder / "deltas").glob("*.safetensors"))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SafetyNeuronsError, match="symbolic link"):
        repeat(folder, seeds=2, with_random=True)


def test_budgets_are_other_sizes_at_other_rates(repeated: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = repeated
    notes = Recorder()
    section = repeat(folder, seeds=1, budgets=[Budget(10.0, 0.01), Budget(20.0, 0.02)], listener=notes)
    small, own = section["groups"]
    assert (small["percent"], small["learning_rate"]) == (10.0, 0.01)
    assert 0 < small["neurons"] < own["neurons"] == len(NeuronSet.load(folder / "neurons.safetensors"))
    # The second is the run itself.
    assert trainings(notes) == ["found 10% of the neurons, seed 0"]
    assert len(lines_of(folder / "deltas" / "deltas.jsonl")) == 4


def test_other_settings_of_tuning_are_other_trainings(repeated: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = repeated
    known = {line["key"] for line in lines_of(folder / "deltas" / "deltas.jsonl")}
    repeat_tuning(folder, {"tune": SMALL["tune"] | {"kl": 0.5}, "evaluate": SMALL["evaluate"]}, seeds=2)
    assert len({line["key"] for line in lines_of(folder / "deltas" / "deltas.jsonl")} - known) == 1


@pytest.mark.usefixtures("other_precision")
def test_another_precision_is_another_training(repeated: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = repeated
    notes = Recorder()
    repeat(folder, seeds=2, listener=notes)
    assert trainings(notes) == ["found 20% of the neurons, seed 1"]


def test_verdicts_of_the_first_judge_are_all_that_is_measured(
    repeated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, section = repeated
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "One and one?", "answer": "#### 2"}\n')
    judged, answered = lines_of(folder / "verdicts.jsonl"), lines_of(folder / "responses.jsonl")
    more = {"gsm8k": str(problems), "task_limit": 1, "judges": [section["judge"], "refusal"]}
    again = section_of("seeds", repeat_tuning, folder, SMALL | {"evaluate": SMALL["evaluate"] | more}, seeds=1)
    assert again["judge"] == section["judge"]
    assert lines_of(folder / "verdicts.jsonl") == judged
    assert lines_of(folder / "responses.jsonl") == answered
    assert not (folder / "measures.jsonl").exists()


@pytest.mark.parametrize(
    ("tuning", "budgets", "told"),
    [
        ({}, [Budget(90.0, 1e-3)], r"\(at budget 90\)\. Name a budget of 50% \(50:RATE\)"),
        ({"percent": 90.0}, [], r"\(at tune\.percent 90\)\. Set tune\.percent to 50"),
    ],
    ids=["a budget", "the run's own size"],
)
def test_a_size_without_as_many_random_neurons_is_told_with_one_that_has_them(
    found: Path, tuning: dict[str, Any], budgets: list[Budget], told: str
) -> None:
    given = {"find": {"score": "magnitude", "selection": "none"}, "tune": SMALL["tune"] | tuning}
    with pytest.raises(SafetyNeuronsError, match=told):
        repeat_tuning(found, SMALL | given, seeds=1, with_random=True, budgets=budgets)


def test_the_run_keeps_its_own_settings(repeated: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = repeated
    record = RunFolder(folder).whole_record()
    assert record.settings["seed"] == 0
    assert record.settings["find"]["percent"] == 20.0
    assert set(record.stages) == {"find", "tune"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seeds": 0}, "1 seed or more"),
        ({"budgets": [Budget(0.0, 1e-3)]}, "percent"),
        ({"budgets": [Budget(1.0, -1.0)]}, "learning_rate"),
        ({"budgets": [Budget(1.0, 1e-3), Budget(1.0, 2e-3)]}, "Name each percentage once"),
    ],
    ids=str,
)
def test_bad_options_are_errors_before_anything_is_done(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(SafetyNeuronsError, match=told):
        repeat_tuning(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "1", "1:", "one:1e-3", "1:2:3"])
def test_budgets_that_are_none_are_told(text: str) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"0\.5:1e-3"):
        Budget.read(text)


def test_a_set_that_is_not_there_is_told_before_anything_is_trained(found: Path) -> None:
    notes = Recorder()
    with pytest.raises(SafetyNeuronsError, match="no-such-set"):
        repeat_tuning(found, SMALL | {"evaluate": {"on": "no-such-set:benign"}}, listener=notes)
    assert not [task for task in notes.tasks if task.startswith("tuning")]
