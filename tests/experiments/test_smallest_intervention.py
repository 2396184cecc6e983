"""The search on a tiny run: what it prefers, what it asks, and that it can be killed."""

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.listeners import Recorder
from builders.runs import lines_of, section_of
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.experiments import smallest_intervention as search_module
from safety_neurons.experiments.smallest_intervention import DIRECTIONS, Limits, choose, cost, search
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.neurons.neuron_set import NeuronSet

WIDE = Limits(target=0.5, broken=1.0, kl_divergence=100.0, percent=40.0, alpha=20.0)
# After five random ones, so that some follow from what was seen before.
TRIALS = 7


@pytest.fixture(autouse=True, scope="module")
def _one_random_set() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "RANDOM_SETS", 1)
        yield


def searching(folder: Path, *given: Any, trials: int = TRIALS, limits: Limits = WIDE, **options: Any) -> dict[str, Any]:
    """The section that a search leaves."""
    found: dict[str, Any] = section_of("search", search, folder, *given, trials=trials, limits=limits, **options)
    return found


def trial(
    moved: float = 1.0, percent: float = 0.1, alpha: float = 3.0, broken: float = 0.0, side: float = 0.0
) -> dict[str, Any]:
    return {"moved": moved, "percent": percent, "alpha": alpha, "broken": broken, "side_kl_divergence": side}


def test_reaching_the_target_comes_before_a_small_push() -> None:
    limits = Limits(target=0.9)
    largest, smallest = trial(0.9, 0.5, 6.0), trial(0.8, 0.02, 0.5)
    assert cost(largest, limits) < cost(smallest, limits)
    # Beyond the target nothing is gained.
    assert cost(trial(1.0), limits) == cost(trial(0.9), limits)


def test_of_equal_moves_the_smaller_set_and_the_smaller_alpha_cost_less() -> None:
    limits = Limits()
    for moved in (0.0, 0.5, 1.0):
        costs = [cost(trial(moved, percent, 3.0), limits) for percent in (0.02, 0.05, 0.2, 0.5)]
        assert costs == sorted(set(costs))
        costs = [cost(trial(moved, 0.1, alpha), limits) for alpha in (0.5, 1.0, 3.0, 6.0)]
        assert costs == sorted(set(costs))


def test_the_cheapest_trial_within_the_limits_is_chosen() -> None:
    limits = Limits(target=0.9, broken=0.03, kl_divergence=1.0)
    broken, far = trial(1.0, 0.02, 0.5, broken=0.1), trial(1.0, 0.02, 0.5, side=1.5)
    good, larger, short = trial(0.9, 0.2, 2.0), trial(0.95, 0.4, 2.0), trial(0.5, 0.02, 0.5)
    assert choose([broken, far, larger, good, short], limits) is good
    assert choose([broken, short, far], limits) is short
    # On the limit is within it.
    edge = trial(1.0, 0.02, 0.5, broken=0.03, side=1.0)
    assert choose([good, edge], limits) is edge


def test_where_no_trial_keeps_to_the_limits_the_nearest_is_chosen() -> None:
    limits = Limits()
    assert choose([trial(broken=0.5), trial(0.2, broken=0.1), trial(side=4.0)], limits)["broken"] == 0.1


@pytest.fixture(scope="module")
def searched_once(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("searched") / "run"
    return folder, searching(folder, inputs)


@pytest.fixture
def searched(searched_once: tuple[Path, dict[str, Any]], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of a searched run, and its section."""
    folder, section = searched_once
    return Path(shutil.copytree(folder, tmp_path / "searched")), section


def test_every_trial_lies_in_the_limits_and_the_chosen_one_is_one_of_them(
    searched: tuple[Path, dict[str, Any]],
) -> None:
    _, section = searched
    assert [direction["toward"] for direction in section["directions"]] == [one[0] for one in DIRECTIONS]
    for direction in section["directions"]:
        assert len(direction["trials"]) == TRIALS
        assert direction["chosen"] == choose(direction["trials"], WIDE)
        for tried in direction["trials"]:
            assert 0.02 <= tried["percent"] <= WIDE.percent
            assert 0 < tried["alpha"] <= WIDE.alpha
            assert 1 <= tried["prompt_positions"] <= 3
            assert tried["dose"] > 0
            assert tried["neurons"] > 0
            assert 0 <= tried["moved"] + tried["broken"] <= 2
            assert tried["side_kl_divergence"] >= 0


def test_the_tests_stand_beside_random_neurons(searched: tuple[Path, dict[str, Any]]) -> None:
    _, section = searched
    for (_, moving, _, staying), direction in zip(DIRECTIONS, section["directions"], strict=True):
        (test,) = direction["tests"]
        assert (test["on"], test["moving"], test["staying"]) == ("test", moving, staying)
        subjects = [row["subject"] for row in test["rows"]]
        assert subjects == ["base", "found", "random", "random, equal dose", "random, equal KL"]
        assert test["rows"][0]["moved"]["value"] == 0
        for row in test["rows"]:
            assert row["moving"]["n"] == 3
            # Random neurons are compared where they move.
            assert (row["staying"] is None) == row["subject"].startswith("random")
            assert ("p_value" in row) == row["subject"].startswith("random")
            if row["subject"] == "random":
                assert row["alpha"] == direction["chosen"]["alpha"]
            assert row["moved"]["value"] <= row["moving"]["answered" if moving == "harmful" else "refused"]["value"]
            assert 0 <= row.get("p_value", 0) <= 1


def test_trials_ask_validation_prompts_and_tests_ask_test_prompts(searched: tuple[Path, dict[str, Any]]) -> None:
    """With the chosen intervention alone the found neurons meet test prompts, and random ones meet nothing else."""
    folder, section = searched
    asked: dict[str, dict[str, set[int]]] = {"harmful": {}, "benign": {}}
    for line in lines_of(folder / "responses.jsonl"):
        (number,) = (int(word) for word in re.findall(r"number (\d+)", line["user"]))
        asked["harmful" if "harm" in line["user"] else "benign"].setdefault(line["change"], set()).add(number)
    # Prompts are numbered from 0: six to train on, two for validation, three for the test.
    validation, test = {6, 7}, {8, 9, 10}
    for numbers in asked.values():
        assert numbers[""] == validation | test
    changes = set(asked["harmful"]) | set(asked["benign"])
    tested = {change for change in changes - {""} if test & (asked["harmful"].get(change, set()))}
    tested |= {change for change in changes - {""} if test & (asked["benign"].get(change, set()))}
    tried = {change for change in changes - {""} if validation & asked["harmful"].get(change, set())}
    interventions = {json.dumps(one) for direction in section["directions"] for one in direction["trials"]}
    # Each trial asks both sides.
    assert len(tried) == len(interventions)
    assert all(asked[side][change] >= validation for side in asked for change in tried)
    # One choice in each direction, and a random set with the same alpha, with the same dose and with the same KL.
    assert len(tested & tried) == 2
    assert len(tested - tried) == 6
    assert all(asked[side][change] == validation | test for side in asked for change in tested & tried)
    for change in tested - tried:
        # Where the neurons should move something, and nowhere else.
        assert [side for side in asked if change in asked[side]] in (["harmful"], ["benign"])


def test_the_same_seed_gives_the_same_trials_and_asks_nothing_again(
    searched: tuple[Path, dict[str, Any]], given: dict[str, Any], tmp_path: Path
) -> None:
    folder, section = searched
    answers = (folder / "responses.jsonl").read_bytes()
    assert searching(folder) == section
    assert (folder / "responses.jsonl").read_bytes() == answers
    assert searching(tmp_path / "new", given) == section


def test_another_seed_gives_other_trials(given: dict[str, Any], tmp_path: Path) -> None:
    alphas = []
    for seed in (0, 1):
        section = searching(tmp_path / str(seed), given | {"seed": seed}, trials=1)
        alphas.append([direction["trials"][0]["alpha"] for direction in section["directions"]])
    assert alphas[0] != alphas[1]


@pytest.mark.parametrize(("where", "after"), [("searching toward conf", 10), ("toward rej", 6), ("testing toward", 8)])
def test_a_killed_search_goes_on_to_the_same_end(
    where: str,
    after: int,
    searched: tuple[Path, dict[str, Any]],
    found: Path,
) -> None:
    folder, section = searched
    with pytest.raises(KeyboardInterrupt):
        search(found, trials=TRIALS, limits=WIDE, listener=Recorder(where, after))
    assert searching(found) == section
    keys = [line["key"] for line in lines_of(found / "responses.jsonl")]
    assert len(keys) == len(set(keys))
    assert sorted(keys) == sorted(line["key"] for line in lines_of(folder / "responses.jsonl"))


def test_other_sets_are_tested_too(found: Path, given: dict[str, Any], foreign: str) -> None:
    pair = f"{foreign}:{given['borderline']}"
    section = searching(found, trials=1, on=[pair])
    for direction in section["directions"]:
        assert [test["on"] for test in direction["tests"]] == ["test", pair]
        rows = direction["tests"][1]["rows"]
        # The run knows the borderline prompts, so only their test split is asked.
        assert {row[side]["n"] for row in rows for side in ("moving", "staying") if row[side]} == {11, 3}


def test_p_values_are_adjusted_for_the_random_sets_of_a_test(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_p_values = itertools.cycle([0.02, 0.01, 0.04])
    monkeypatch.setattr(search_module, "mcnemar", lambda *_: next(found_p_values))
    for direction in searching(found, trials=1)["directions"]:
        (test,) = direction["tests"]
        shown = [row["p_value"] for row in test["rows"] if "p_value" in row]
        assert shown == pytest.approx([0.04, 0.03, 0.04])


@pytest.mark.parametrize(
    "changes",
    [
        *({"target": value} for value in (-0.1, 1.1, float("nan"))),
        *({"broken": value} for value in (-0.1, 1.1, float("nan"))),
        *({"kl_divergence": value} for value in (0.0, -1.0, float("nan"))),
        *({"percent": value} for value in (0.0, 0.02, 101.0, float("nan"))),
        *({"alpha": value} for value in (0.0, -1.0, float("nan"), float("inf"))),
    ],
    ids=str,
)
def test_bad_limits_are_errors_before_anything_is_done(
    changes: dict[str, float], given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SafetyNeuronsError):
        search(tmp_path / "run", given, trials=1, limits=Limits(**{"percent": 40.0} | changes))
    assert not (tmp_path / "run").exists()


def test_a_search_without_a_limit_of_the_distance_is_refused_or_can_be_written(
    given: dict[str, Any], tmp_path: Path
) -> None:
    try:
        section = searching(tmp_path / "run", given, trials=1, limits=Limits(percent=40.0, kl_divergence=float("inf")))
    except SafetyNeuronsError:
        assert not (tmp_path / "run").exists()
    else:
        assert len(section["directions"]) == 2


def test_sets_are_selected_as_the_run_says_and_an_empty_one_is_not_chosen(
    found: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, asked = ScoredNeurons.top, set()
    nothing = tuple(indices[:0] for indices in NeuronSet.load(found / "neurons.safetensors").rejection)

    def selected(self: ScoredNeurons, percent: float, scope: str | None = None, selection: str = "") -> NeuronSet:
        asked.add((scope, selection))
        # Small sets are empty, as those of a score that ranks each side by itself can be.
        chosen = top(self, percent, scope, selection)
        return replace(chosen, rejection=nothing) if percent < 10 else chosen

    monkeypatch.setattr(ScoredNeurons, "top", selected)
    limits = replace(WIDE, target=0.0)
    for direction in searching(found, {"find": {"selection": "rejection"}}, limits=limits)["directions"]:
        empty = [one for one in direction["trials"] if not one["neurons"]]
        assert direction["chosen"]["neurons"] > 0
        # It would have been the smallest intervention of all.
        assert min(cost(one, limits) for one in empty) < cost(direction["chosen"], limits)
    assert asked == {("layer", "rejection")}


def test_no_trials_are_an_error(found: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="trial"):
        search(found, trials=0)


def test_a_model_without_answers_can_be_searched(silent: dict[str, Any], tmp_path: Path) -> None:
    section = searching(tmp_path / "run", silent, trials=2)
    assert [len(direction["trials"]) for direction in section["directions"]] == [2, 2]


def test_a_set_of_which_nothing_is_left_is_no_crash(given: dict[str, Any], tmp_path: Path) -> None:
    """The largest activations of both sides can be those of the same neurons: their difference is empty."""
    lines = Path(given["harmful"]).read_text().replace("plan.", "plan. Please.")
    (tmp_path / "alike.jsonl").write_text(lines)
    settings = given | {"benign": str(tmp_path / "alike.jsonl"), "find": {"score": "magnitude", "percent": 20.0}}
    with contextlib.suppress(SafetyNeuronsError):
        search(tmp_path / "run", settings, trials=2, limits=Limits(percent=1.0, broken=1.0, kl_divergence=100.0))
