"""The comparison of all scores on a tiny model: every number again from the answers that it left."""

import hashlib
import importlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from scipy.stats import binomtest

from builders.quick import find, score_neurons
from safety_neurons.calibration.calibration import calibrate, dose
from safety_neurons.cli import console as console_module
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Advance, Silence
from safety_neurons.core.statistics import mcnemar
from safety_neurons.core.tables import escaped
from safety_neurons.evaluation import judges
from safety_neurons.evaluation.judges import Judgment, RuleJudge, Verdict
from safety_neurons.experiments.cost import costing
from safety_neurons.experiments.score_comparison import compare_scores
from safety_neurons.experiments.scored import Training, jaccard, mean_spearman, of_size
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.hook_points import activation_hooks
from safety_neurons.neurons import scores
from safety_neurons.neurons.read import write_norms
from safety_neurons.report.experiment_tables import score_notes
from safety_neurons.report.experiment_tables import scores as tables
from safety_neurons.report.exports import scores_markdown as markdown
from safety_neurons.settings import Settings

scored_module = importlib.import_module("safety_neurons.experiments.scored")

TEXTS = {
    "harmful": "Tell me how to harm person number {} with a plan.",
    "benign": "Show me recipe {} for soup, please.",
}
SPLITS = ["train"] * 7 + ["validation"] + ["test"] * 5
BUDGETS = (10.0, 40.0)


def verdict_on(response: str) -> Verdict:
    """Any verdict, the same for the same answer."""
    verdicts: tuple[Verdict, ...] = ("refused", "complied", "complied", "refused", "unscored")
    return verdicts[hashlib.sha256(response.encode()).digest()[0] % 5]


@pytest.fixture(autouse=True)
def _judge_by_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = RuleJudge("refusal", "by hash", lambda _request, response: Judgment(verdict_on(response), "hash"))
    monkeypatch.setattr(judges, "get", lambda _name: fake)


class Stop(Silence):
    """Stops in the middle of a task."""

    def __init__(self, where: str, after: int) -> None:
        self.where, self.left = where, after

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        def advance(items: int) -> None:
            if self.where in description:
                self.left -= items
                if self.left <= 0:
                    raise KeyboardInterrupt

        yield advance


_MADE: dict[str, Any] = {}


@pytest.fixture
def given(make_model: Callable[..., ChatModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if "given" not in _MADE:
        folder = tmp_path_factory.mktemp("inputs")
        for name, seed in (("model", 0), ("other", 1)):
            model = make_model(seed=seed)
            model.model.save_pretrained(folder / name)
            model.tokenizer.save_pretrained(folder / name)
        values: dict[str, Any] = {"model": str(folder / "model"), "device": "cpu", "dtype": "float32", "batch_size": 4}
        for name, text in TEXTS.items():
            lines = [json.dumps({"text": text.format(n), "split": split}) for n, split in enumerate(SPLITS)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
            values[name] = str(folder / f"{name}.jsonl")
        values["calibrate"] = {"prompt_positions": 3, "alpha_conformity": 30.0, "alpha_rejection": 30.0}
        values["find"] = {"positions": 3}
        values["evaluate"] = {"answer_tokens": 4}
        _MADE["given"] = values
    return json.loads(json.dumps(_MADE["given"]))


def read(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> float:
        pytest.fail(f"{constant} is no JSON")

    found = json.loads((folder / "scores.json").read_text(), parse_constant=refuse)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def whole(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison, never written to."""
    if "whole" not in _MADE:
        folder = tmp_path_factory.mktemp("whole") / "scores"
        compare_scores(folder, given, budgets=BUDGETS, overlap_at=10.0, seeds=3)
        _MADE["whole"] = folder
    found: Path = _MADE["whole"]
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in results.items() if name not in ("finished", "scores")}
    timed = ("seconds", "peak_bytes")
    kept["scores"] = [{k: v for k, v in one.items() if k not in timed} for one in results["scores"]]
    return kept


def test_every_rate_is_that_of_the_kept_answers(whole: Path) -> None:
    results = read(whole)
    answers = lines(whole / "responses.jsonl")
    found: dict[tuple[str, str, str], list[Verdict]] = {}
    for line in answers:
        key = (line["subject"], line["condition"], line["prompts"])
        found.setdefault(key, []).append(verdict_on(line["response"]))
    one_model = [name for name in scores.names() if name != "change"]
    assert len(results["rows"]) == 2 + len(one_model) * len(BUDGETS) * 2
    base = {row["toward"]: row for row in results["rows"] if row["score"] is None}
    shared = 0
    for row in results["rows"]:
        assert (row["prompts"], row["counted"]) == {
            "conformity": ("harmful", "complied"),
            "rejection": ("benign", "refused"),
        }[row["toward"]]
        condition = "none" if row["score"] is None else f"toward {row['toward']}, {row['percent']:g}%"
        if (row["score"] or "base", condition, row["prompts"]) not in found:
            # Another score has the very same neurons: nobody is asked twice.
            shared += 1
            continue
        verdicts = found[row["score"] or "base", condition, row["prompts"]]
        assert row["n"] == len(verdicts) == 5
        # What could not be judged is not moved.
        assert row["value"] == verdicts.count(row["counted"]) / 5
        assert row["unscored"] == verdicts.count("unscored")
        interval = binomtest(verdicts.count(row["counted"]), 5).proportion_ci(0.95, method="wilson")
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
        assert row["difference"] == pytest.approx(row["value"] - base[row["toward"]]["value"])
        if row["score"] not in (None, "random"):
            random = found["random", condition, row["prompts"]]
            assert row["against_random"] == pytest.approx(row["value"] - random.count(row["counted"]) / 5)
            assert 0 <= row["p_value"] <= 1
    assert shared <= 4
    assert len({tuple(verdicts) for verdicts in found.values()}) > 3
    assert {row["unscored"] for row in results["rows"]} > {0}


def test_sets_are_those_that_find_finds(
    whole: Path, given: dict[str, Any], make_model: Callable[..., ChatModel]
) -> None:
    model = make_model(seed=0)
    train = [[TEXTS[name].format(number) for number in range(7)] for name in TEXTS]
    training = Training(tuple(train[0]), tuple(train[1]), Settings.model_validate(given), 3)
    for name in ("write-contrast", "gradient", "removal"):
        scored = score_neurons(model, *train, score=name, positions=3)
        kept = scored_module.score_all(model, None, [name], training, whole / "nowhere", Silence())[name]
        for percent in (5, 30):
            one, other = scored.top(percent), kept.whole.top(percent)
            for mine, theirs in zip(one.both, other.both, strict=True):
                assert mine.tolist() == theirs.tolist()


def test_nothing_is_computed_again(whole: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before, answers = read(whole), (whole / "responses.jsonl").read_bytes()
    monkeypatch.setattr(scored_module, "read_both", None)
    again = compare_scores(whole, given, budgets=BUDGETS, overlap_at=10.0, seeds=3)
    assert without_times(again) == without_times(before)
    assert again["scores"] == before["scores"]
    assert (whole / "responses.jsonl").read_bytes() == answers


@pytest.mark.parametrize("where", ["computing gradient", "calibrating 10%", "calibrating 40%"])
def test_a_stopped_comparison_goes_on_to_the_same_end(
    where: str, whole: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "scores"
    with pytest.raises(KeyboardInterrupt):
        compare_scores(folder, given, budgets=BUDGETS, overlap_at=10.0, seeds=3, listener=Stop(where, 3))
    compare_scores(folder, given, budgets=BUDGETS, overlap_at=10.0, seeds=3)
    assert without_times(read(folder)) == without_times(read(whole))
    keys = [line["key"] for line in lines(folder / "responses.jsonl")]
    assert len(keys) == len(set(keys))
    assert sorted(keys) == sorted(line["key"] for line in lines(whole / "responses.jsonl"))


def test_other_settings_are_computed_anew(whole: Path, given: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    changed = given | {"find": {"positions": 3, "prompts": 4}}
    first = compare_scores(folder, changed, budgets=(10.0,), overlap_at=10.0, seeds=0)
    assert first["training_prompts"] == {"harmful": 4, "benign": 4}
    again = compare_scores(folder, given, budgets=BUDGETS, overlap_at=10.0, seeds=3)
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


def test_sets_of_every_score_have_the_budgets_size(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    for name in scores.names():
        scored = score_neurons(model, harmful, benign, score=name, other=model, response_tokens=3)
        if name == "change":
            continue
        for percent in (5, 10, 20):
            wanted = percent / 100 * 144
            size = len(of_size(scored, percent))
            # A set difference grows by a few neurons of each of three layers at a time.
            assert abs(size - wanted) <= (1 if scored.score.contrastive else 9)


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


def test_the_dose_is_the_summed_length_of_the_shifts(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    neurons = find(model, harmful, benign, percent=20)
    seen: list[list[torch.Tensor]] = [[], []]
    text = model.render("Hi")
    for number, alpha in enumerate((0.0, 2.0)):
        hooks = [
            (hook_point, lambda seen_, kept=seen[number]: kept.append(seen_.values[-1]))
            for hook_point in model.hook_points
        ]
        # Of one layer at a time: a shift moves the layers above it, too.
        with calibrate(model, neurons, toward="conformity", alpha=alpha), activation_hooks(hooks), torch.no_grad():
            model.model(**model.encode([text]))
    norms = write_norms(model).norm_2
    first = neurons.both[0]
    one_layer = replace(neurons, rejection=(first, *[first[:0]] * 2), conformity=(first[:0],) * 3)
    moved = (seen[1][0] - seen[0][0]).abs() @ norms[0]
    assert float(moved) == pytest.approx(2 * dose(one_layer, norms), rel=1e-4)
    assert dose(neurons, norms) > dose(one_layer, norms) > 0


def test_jaccard_counts_shared_neurons(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    one, other = (find(model, harmful, benign, percent=20, score=name) for name in ("contrast", "magnitude"))
    sets = [
        {(hook_point, i) for hook_point, indices in enumerate(found.both) for i in indices.tolist()}
        for found in (one, other)
    ]
    assert jaccard(one, other) == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert jaccard(one, one) == 1
    assert 0 < jaccard(one, other) < 1


def test_a_ranking_agrees_with_itself(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    scored = score_neurons(model, harmful, benign)
    assert mean_spearman([scored, scored]) == pytest.approx(1)
    assert mean_spearman([scored]) is None


@pytest.mark.parametrize(("gained", "lost", "same"), [(0, 0, 4), (5, 0, 2), (3, 2, 0), (7, 1, 9)])
def test_mcnemar_is_the_binomial_tail_of_discordant_pairs(gained: int, lost: int, same: int) -> None:
    first = [True] * gained + [False] * lost + [True] * same
    second = [False] * gained + [True] * lost + [True] * same
    total = gained + lost
    tail = sum(comb(total, k) for k in range(min(gained, lost) + 1)) / 2**total
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(second, first) == mcnemar(first, second)


def test_halves_are_random_and_fixed() -> None:
    prompts = tuple(f"prompt {number}" for number in range(43))
    training = Training(prompts, prompts[:20], Settings(), 5)
    parts = training.parts()
    assert sorted(text for harmful, _ in parts for text in harmful) == sorted(prompts)
    assert sorted(text for _, benign in parts for text in benign) == sorted(prompts[:20])
    assert {len(harmful) for harmful, _ in parts} == {4, 5}
    halves = training.halves(len(parts))
    assert halves == training.halves(len(parts))
    assert all(len(set(half)) == 5 for half in halves)
    assert len({tuple(half) for half in halves}) > 1
    assert parts == Training(prompts, prompts[:20], Settings(), 2).parts()
    assert parts != Training(prompts, prompts[:20], Settings(seed=1), 5).parts()


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


def test_cost_sees_time_and_memory() -> None:
    with costing() as cost:
        held = torch.ones(32 * 2**20)
        time.sleep(0.2)
        del held
        small = torch.ones(1)
    assert small
    assert cost.seconds > 0
    if not torch.cuda.is_available():
        assert 100 * 2**20 < cost.peak < 2**30
