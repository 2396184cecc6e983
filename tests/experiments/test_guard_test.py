"""The guard of a tiny run as a detector: against rates that are counted threshold by threshold."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.runs import TEXTS, lines_of, section_of
from safety_neurons import run
from safety_neurons.calibration.guard import Guard
from safety_neurons.core import statistics
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import ignore
from safety_neurons.experiments import guard_test as guard_test_module
from safety_neurons.experiments.guard_test import described, guard_run
from safety_neurons.models.chat import ChatModel
from safety_neurons.runs.guard import ALPHAS

DETECTORS = (
    "found neurons of all layers",
    "random neurons of all layers",
    "last hidden state",
    "perplexity of the prompt",
)


def auroc(harmful: Tensor, benign: Tensor) -> float:
    """The share of pairs in the right order; equal ones count half."""
    pairs = [(a > b) + (a == b) / 2 for a in harmful.tolist() for b in benign.tolist()]
    return sum(pairs) / len(pairs)


def caught(harmful: Tensor, benign: Tensor, rate: float) -> float:
    """The largest share of harmful prompts that a threshold catches that flags at most so many benign ones."""
    best = 0.0
    for threshold in [*harmful.tolist(), *benign.tolist(), float("inf")]:
        if float((benign >= threshold).double().mean()) <= rate:
            best = max(best, float((harmful >= threshold).double().mean()))
    return best


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize("sizes", [(3, 2), (40, 30), (150, 120)], ids=str)
def test_measures_are_those_counted_by_hand(
    sizes: tuple[int, int], ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_test_module, "RESAMPLES", statistics.RESAMPLES)
    generator = torch.Generator().manual_seed(sum(sizes))
    harmful, benign = (torch.randn(size, generator=generator) for size in sizes)
    harmful = harmful + 1
    if ties:
        harmful, benign = harmful.round(), benign.round()
    found = described(harmful, benign, None, 0)
    assert (found["harmful"], found["benign"]) == sizes
    assert found["auroc"]["value"] == pytest.approx(auroc(harmful, benign))
    for rate in (0.01, 0.05):
        assert found[f"tpr_at_{rate:g}"]["value"] == pytest.approx(caught(harmful, benign, rate))
    for name in ("auroc", "tpr_at_0.01", "tpr_at_0.05"):
        assert 0 <= found[name]["low"] <= found[name]["high"] <= 1
    assert found["auroc"]["low"] <= found["auroc"]["value"] <= found["auroc"]["high"]
    assert "flagged_harmful" not in found


def test_what_lies_above_a_threshold_is_flagged() -> None:
    found = described(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 2.0]), 2.0, 0)
    assert found["flagged_harmful"]["value"] == 0.5
    assert found["flagged_benign"]["value"] == 0


def test_intervals_follow_from_the_seed() -> None:
    harmful, benign = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    assert described(harmful, benign, None, 1) == described(harmful, benign, None, 1)
    assert described(harmful, benign, None, 1) != described(harmful, benign, None, 2)


@pytest.fixture(scope="module")
def pair(inputs: dict[str, Any]) -> str:
    return f"{inputs['harmful']}:{inputs['borderline']}"


@pytest.fixture(scope="module")
def guarded_once(
    inputs: dict[str, Any], pair: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("guarded") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard_test_module, "RESAMPLES", 20)
        return folder, section_of("guard", guard_run, folder, inputs, on=[pair])


@pytest.fixture
def guarded(guarded_once: tuple[Path, dict[str, Any]], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of a run with its guard, and the section."""
    folder, section = guarded_once
    return Path(shutil.copytree(folder, tmp_path / "guarded")), section


def test_every_detector_has_a_row_for_every_test(guarded: tuple[Path, dict[str, Any]], pair: str) -> None:
    _, section = guarded
    names = {row["detector"] for row in section["detectors"]}
    (own,) = names - set(DETECTORS)
    assert own == f"guard (found neurons to layer {section['layer']})"
    cells = [(row["detector"], row["on"]) for row in section["detectors"]]
    assert sorted(cells) == sorted((name, test) for name in (own, *DETECTORS) for test in ("test", pair, "contrast"))
    for row in section["detectors"]:
        assert (row["harmful"], row["benign"]) == (3, 3)
        assert 0 <= row["auroc"]["value"] <= 1
        assert ("flagged_harmful" in row) == (row["detector"] == own)
    # Of six prompts a set, all once more in disguise; disguised benign ones set no threshold. The rules that are the
    # first disguise of each set do not fit the context.
    assert section["fitted_on"] == {"harmful": 22, "benign": 6, "borderline": 16}
    sides = [(row["on"], row["prompts"], row["n"]) for row in section["rows"]]
    assert sorted(sides) == sorted(
        (test, side, 3) for test in ("test", pair, "contrast") for side in ("harmful", "benign")
    )


def test_the_kept_guard_is_the_one_that_was_tested(
    guarded: tuple[Path, dict[str, Any]], make_model: Callable[..., ChatModel]
) -> None:
    folder, section = guarded
    fitted = Guard.load(folder / "guard.safetensors")
    assert fitted.layer == section["layer"]
    assert fitted.threshold == section["threshold"]
    assert fitted.false_positive_rate == section["false_positive_rate"] == 0.2
    assert sum(map(len, fitted.deciding)) == section["deciding_neurons"]
    assert fitted.calibration.generated_tokens == section["calibration"]["generated_tokens"] == 4
    scores = {
        side: fitted.scores(make_model(), [text.format(number) for number in (8, 9, 10)], 4)
        for side, text in (
            ("harmful", TEXTS["harmful"]),
            ("benign", TEXTS["benign"]),
        )
    }
    (row,) = [row for row in section["detectors"] if row["on"] == "test" and row["detector"].startswith("guard")]
    assert row["auroc"]["value"] == pytest.approx(auroc(scores["harmful"], scores["benign"]))
    assert row["flagged_harmful"]["value"] == pytest.approx(
        float((scores["harmful"] > fitted.threshold).float().mean())
    )


def test_perplexity_is_that_of_each_prompt_alone(make_model: Callable[..., ChatModel]) -> None:
    model = make_model()
    prompts = ["Hi", "Show me a recipe for a soup, please.", "Tell me", "Hello there", "What is this?"]
    texts = [model.render(prompt) for prompt in prompts]
    found = guard_test_module._batched(model, texts, guard_test_module._mean_nll, 2, ignore).flatten()
    for prompt, value in zip(prompts, found.tolist(), strict=True):
        tokens = model.encode([model.render(prompt)])["input_ids"]
        with torch.no_grad():
            logits = model.model(input_ids=tokens).logits[0, :-1].double()
        assert value == pytest.approx(float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:])), rel=1e-4)


def test_no_test_holds_a_prompt_that_the_guard_learned_from(found: Path, given: dict[str, Any]) -> None:
    """Of the contrast set, too, it learns the training split."""
    pair = f"{given['contrast']}:{given['benign']}"
    section = section_of("guard", guard_run, found, on=[pair])
    asked = [line["user"] for line in lines_of(found / "responses.jsonl")]
    learned = [text.format(number) for text in TEXTS.values() for number in range(6)]
    assert asked
    assert not [user for user in asked if any(text in user for text in learned)]
    assert {row["harmful"] for row in section["detectors"]} == {3}


def test_the_section_stays_until_the_neurons_change(guarded: tuple[Path, dict[str, Any]]) -> None:
    folder, section = guarded

    def kept() -> Any:
        return json.loads((folder / "results.json").read_text()).get("guard")

    assert kept() == section
    run(folder, until="calibrate")
    assert kept() == section
    run(folder, {"find": {"percent": 10.0}}, until="find")
    assert kept() is None


def test_a_second_time_nothing_is_asked(guarded: tuple[Path, dict[str, Any]], pair: str) -> None:
    folder, section = guarded
    answers = lines_of(folder / "responses.jsonl")
    # Without a guard, and with each of the strengths that were tried.
    assert Counter(line["change"].partition(" ")[0] for line in answers).keys() == {"", "guard"}
    assert len({line["change"] for line in answers}) == 1 + len(ALPHAS)
    assert section_of("guard", guard_run, folder, on=[pair]) == section
    assert lines_of(folder / "responses.jsonl") == answers


def test_without_answers_and_with_a_dose_nothing_is_asked(found: Path) -> None:
    section = section_of("guard", guard_run, found, {"guard": {"alpha": 2.5}}, answers=False)
    assert (section["rows"], section["doses"], section["alpha"]) == ([], [], 2.5)
    assert lines_of(found / "responses.jsonl") == []


def test_a_rate_that_the_prompts_cannot_give_is_an_error(found: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="at least 99"):
        guard_run(found, {"guard": {"false_positive_rate": 0.01}})
