"""The comparison of all scores on a tiny model: every number again from the answers that it left."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import binomtest

from builders.judges import BY_HASH, by_hash
from builders.listeners import Recorder
from builders.models import tiny_model
from builders.runs import TEXTS, Splits, lines_of, save_model, small_run
from safety_neurons.calibration.calibration import digest
from safety_neurons.cli import console as console_module
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import fingerprint
from safety_neurons.core.markdown import escaped
from safety_neurons.core.progress import Silence
from safety_neurons.evaluation.judges import Verdict
from safety_neurons.experiments import score_comparison as comparison_module
from safety_neurons.experiments import scored as scored_module
from safety_neurons.experiments.score_comparison import compare_scores
from safety_neurons.experiments.scored import TrainingPrompts, of_size, score_all
from safety_neurons.models.load import load
from safety_neurons.neurons import scores
from safety_neurons.report.experiment_tables import score_notes
from safety_neurons.report.experiment_tables import scores as tables
from safety_neurons.report.exports import scores_markdown as markdown
from safety_neurons.settings import Settings

SPLITS = Splits(7, 1, 5)
BUDGETS = (10.0, 40.0)
OPTIONS: dict[str, Any] = {"budgets": BUDGETS, "overlap_at": 10.0, "seeds": 3}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a comparison; a model with other weights lies beside its model."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(tiny_model(seed=1), folder / "other")
    return small_run(
        folder,
        SPLITS,
        calibrate={"prompt_positions": 3, "alpha_conformity": 30.0, "alpha_rejection": 30.0},
        find={"positions": 3},
        evaluate={"answer_tokens": 4, "judge": BY_HASH.name},
    )


@pytest.fixture
def given(inputs: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(inputs)


def read(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> float:
        pytest.fail(f"{constant} is not JSON")

    found = json.loads((folder / "scores.json").read_text(), parse_constant=refuse)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def whole(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison, never written to."""
    folder = tmp_path_factory.mktemp("whole") / "scores"
    compare_scores(folder, inputs, **OPTIONS)
    return folder


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in results.items() if name not in ("finished", "scores")}
    timed = ("seconds", "peak_bytes")
    kept["scores"] = [{k: v for k, v in one.items() if k not in timed} for one in results["scores"]]
    return kept


def test_every_rate_is_that_of_the_kept_answers(
    whole: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = read(whole)
    said = {(line["change"], line["user"]): by_hash(line["text"]) for line in lines_of(whole / "responses.jsonl")}
    test = {name: [TEXTS[name].format(number) for number in SPLITS.test_numbers] for name in ("harmful", "benign")}
    # The scores that the folder holds.
    monkeypatch.setattr(scored_module, "read_both", None)
    settings, train = Settings.model_validate(given), [[TEXTS[name].format(n) for n in range(7)] for name in test]
    training = TrainingPrompts(tuple(train[0]), tuple(train[1]), settings, 3)
    one_model = [name for name in scores.names() if name != "change"]
    model = load(given["model"], device="cpu", dtype="float32")
    scored = score_all(model, None, one_model, training, whole / "scores", Silence())

    def verdicts(row: dict[str, Any], score: str | None) -> list[Verdict]:
        change = ""
        if score is not None:
            neurons = of_size(scored[score].whole, row["percent"])
            name = fingerprint(digest(neurons), row["alpha"], settings.calibrate.but_alphas())
            change = f"calibrated toward {row['toward']} {name}"
        return [said[change, text] for text in test[row["prompts"]]]

    assert len(results["rows"]) == 2 + len(one_model) * len(BUDGETS) * 2
    base = {row["toward"]: row for row in results["rows"] if row["score"] is None}
    seen = set()
    for row in results["rows"]:
        assert (row["prompts"], row["counted"]) == {
            "conformity": ("harmful", "complied"),
            "rejection": ("benign", "refused"),
        }[row["toward"]]
        found = verdicts(row, row["score"])
        seen.add(tuple(found))
        assert row["n"] == len(found) == 5
        # What could not be judged is not moved.
        assert row["value"] == found.count(row["counted"]) / 5
        assert row["unscored"] == found.count("unscored")
        interval = binomtest(found.count(row["counted"]), 5).proportion_ci(0.95, method="wilson")
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
        assert row["difference"] == pytest.approx(row["value"] - base[row["toward"]]["value"])
        if row["score"] not in (None, "random"):
            random = verdicts(row, "random")
            assert row["against_random"] == pytest.approx(row["value"] - random.count(row["counted"]) / 5)
            assert 0 <= row["p_value"] <= 1
    assert len(seen) > 3
    assert {row["unscored"] for row in results["rows"]} > {0}


def test_nothing_is_computed_again(whole: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before, answers = read(whole), (whole / "responses.jsonl").read_bytes()
    monkeypatch.setattr(scored_module, "read_both", None)
    again = compare_scores(whole, given, **OPTIONS)
    assert without_times(again) == without_times(before)
    assert again["scores"] == before["scores"]
    assert (whole / "responses.jsonl").read_bytes() == answers


@pytest.mark.parametrize("where", ["computing gradient", "calibrating 10%", "calibrating 40%"])
def test_a_stopped_comparison_goes_on_to_the_same_end(
    where: str, whole: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "scores"
    with pytest.raises(KeyboardInterrupt):
        compare_scores(folder, given, **OPTIONS, listener=Recorder(where, 3))
    compare_scores(folder, given, **OPTIONS)
    assert without_times(read(folder)) == without_times(read(whole))
    keys = [line["key"] for line in lines_of(folder / "responses.jsonl")]
    assert len(keys) == len(set(keys))
    assert sorted(keys) == sorted(line["key"] for line in lines_of(whole / "responses.jsonl"))


def test_other_settings_are_computed_anew(whole: Path, given: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    changed = given | {"find": {"positions": 3, "prompts": 4}}
    first = compare_scores(folder, changed, budgets=(10.0,), overlap_at=10.0, seeds=0)
    assert first["training_prompts"] == {"harmful": 4, "benign": 4}
    again = compare_scores(folder, given, **OPTIONS)
    assert without_times(again) == without_times(read(whole))
    assert first["scores"][0]["jaccard"] is None


def test_change_takes_part_where_there_is_a_second_model(whole: Path, given: dict[str, Any], tmp_path: Path) -> None:
    assert list(read(whole)["left_out"]) == ["change"]
    assert "second" in read(whole)["left_out"]["change"]
    other = str(Path(given["model"]).parent / "other")
    found = compare_scores(
        tmp_path / "pair", given | {"find": {"positions": 3, "other_model": other}}, budgets=(20.0,), seeds=2
    )
    assert found["left_out"] == {}
    assert [one["score"] for one in found["scores"]] == scores.names()
    assert found["other_model"] == other


def test_overlap_and_stability_have_their_bounds(whole: Path) -> None:
    results = read(whole)
    overlap = results["overlap"]
    assert overlap["percent"] == 10.0
    for place, row in enumerate(overlap["jaccard"]):
        assert row[place] == 1
        assert all(0 <= value <= 1 for value in row)
        assert row == [other[place] for other in overlap["jaccard"]]
    about = {one["score"]: one for one in results["scores"]}
    for one in about.values():
        assert 0 <= one["jaccard"] <= 1
        assert one["seconds"] >= 0
        assert one["peak_bytes"] >= 0
        assert one["halves"] == 3
    assert abs(about["random"]["spearman"]) < 0.5 < about["magnitude"]["spearman"] <= 1
    assert about["random"]["jaccard"] < about["magnitude"]["jaccard"]
    assert about["effect-size"]["significant"] > 0
    assert about["wanda"]["significant"] is None


def test_equal_doses_scale_alpha(whole: Path, given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "equal").mkdir()
    shutil.copytree(whole / "scores", tmp_path / "equal" / "scores")
    equal = compare_scores(tmp_path / "equal", given, budgets=(10.0,), overlap_at=10.0, seeds=3, equal_dose=True)
    same = {(row["score"], row["toward"]): row for row in read(whole)["rows"] if row["percent"] == 10.0}
    assert {row["alpha"] for row in same.values()} == {30.0}
    for row in equal["rows"]:
        if row["score"] is None:
            assert row["alpha"] is row["dose"] is None
            continue
        before = same[row["score"], row["toward"]]
        assert row["neurons"] == before["neurons"]
        # The dose is alpha times what one alpha adds, and the same for all sets.
        assert row["dose"] / row["alpha"] == pytest.approx(before["dose"] / before["alpha"])
        assert row["dose"] == pytest.approx(same["write-contrast", row["toward"]]["dose"])
    assert "same dose" in (tmp_path / "equal" / "scores.md").read_text()


def test_tables_fit_a_terminal_and_say_everything(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = read(whole)
    monkeypatch.setattr(console_module, "console", Console(width=120, record=True, highlight=False))
    console_module.print_tables(tables(results), score_notes(results))
    shown = console_module.console.export_text()
    assert "…" not in shown
    assert all(len(line) <= 120 for line in shown.splitlines())
    text = markdown(results)
    assert text == (whole / "scores.md").read_text()
    for table in tables(results):
        assert all(len(row.cells) == len(table.columns) for row in table.rows)
        assert escaped(table.title) in text
    for one in results["scores"]:
        assert text.count(f"\n| {one['score']} |") == 6
        assert escaped(one["source"]) in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith(" |") for line in rows)
    assert "change is left out" in text


@pytest.mark.parametrize(("differs", "against", "mark"), [(True, 0.2, "*"), (True, -0.2, "<"), (False, 0.2, "")])
def test_cells_say_which_way_a_score_differs_from_random_neurons(
    differs: bool, against: float, mark: str, whole: Path
) -> None:
    results = read(whole)
    for row in results["rows"]:
        if row["score"] == "wanda":
            row.update(value=0.6, low=0.23, high=0.88, unscored=1, differs_from_random=differs, against_random=against)
    cells = next(row.cells for row in tables(results)[0].rows if row.cells[0].value == "wanda")
    assert {cell.text for cell in cells[1:]} == {f"60%{mark} (23\N{EN DASH}88%), 1 unscored"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": [0]}, "above 0"),
        ({"budgets": []}, "above 0"),
        ({"budgets": [1, 1]}, "twice"),
        ({"seeds": -1}, "seeds"),
    ],
)
def test_bad_options_are_errors_before_any_work(
    options: dict[str, Any], message: str, given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SafetyNeuronsError, match=message):
        compare_scores(tmp_path / "scores", given, **options)
    assert not (tmp_path / "scores").exists()


def test_copies_of_public_sets_are_read(given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"Fell tree {number} of my neighbor." for number in range(20)]
    (tmp_path / "advbench.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    monkeypatch.setattr(comparison_module, "_compare", lambda run, *_: run.prompts["harmful"].texts)
    given |= {"harmful": "advbench", "data_dir": tmp_path}
    assert compare_scores(tmp_path / "scores", given) == texts
