"""Whose tokens count, and what is selected: every option, on dense models and on experts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from builders.quick import find, score_neurons
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons import scores
from safety_neurons.neurons.capture import CapturedSums, capture_sums
from safety_neurons.neurons.read import passes

NAMES = scores.names()


@pytest.fixture
def experts(make_model: Callable[..., ChatModel]) -> ChatModel:
    return make_model("mixtral")


@pytest.mark.parametrize("score", NAMES)
def test_experts_have_scores_without_nan(score: str, experts: ChatModel, harmful: list[str], benign: list[str]) -> None:
    found = score_neurons(experts, harmful[:2], benign[:2], score=score, other=experts, response_tokens=3)
    for hook_point in (*found.harmful, *found.benign):
        assert hook_point.isfinite().all()
    assert len(found.top(10)) or score == "change"


@pytest.mark.parametrize("score", ["removal", "effect-size", "wanda", "magnitude", "write-contrast"])
def test_experts_that_no_token_reaches_have_no_score(score: str, experts: ChatModel) -> None:
    found = score_neurons(experts, ["Hi"], ["Hi"], score=score, response_tokens=1)
    statistics = capture_sums(experts, [experts.render("Hi")]).statistics()
    unseen = [count == 0 for count in statistics.count]
    assert any(bool(mask.any()) for mask in unseen)
    if score != "wanda":
        for mask, hook_point in zip(unseen, found.harmful, strict=True):
            assert (hook_point[mask] <= 0).all()


@pytest.mark.parametrize("last", [1, 3])
def test_the_last_tokens_that_count_can_be_chosen(
    last: int, model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    found = score_neurons(model, harmful, benign, score="magnitude", last_tokens=last)
    for prompts, side in ((harmful, found.harmful), (benign, found.benign)):
        texts = [model.render(prompt) for prompt in prompts]
        expected = capture_sums(model, texts, tail=last).statistics().mean_absolute
        for hook_point, mean, mine in zip(model.hook_points, expected, side, strict=True):
            torch.testing.assert_close(mine, mean * hook_point.write_vectors().norm(dim=1))


def test_the_whole_prompt_and_the_response_can_count(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    sides = {
        tokens: score_neurons(model, harmful, benign, score="magnitude", tokens=tokens, response_tokens=4).harmful
        for tokens in ("last", "prompt", "response")
    }
    texts = [model.render(prompt) for prompt in harmful]
    everything = capture_sums(model, texts, tail=None).statistics().mean_absolute
    for hook_point, mean, mine in zip(model.hook_points, everything, sides["prompt"], strict=True):
        torch.testing.assert_close(mine, mean * hook_point.write_vectors().norm(dim=1))
    assert not torch.allclose(sides["response"][0], sides["last"][0])
    assert not torch.allclose(sides["response"][0], sides["prompt"][0])


@pytest.mark.parametrize("score", ["magnitude", "write-contrast"])
def test_without_a_difference_the_top_of_harmful_prompts_is_taken(
    score: str, model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    found = find(model, harmful, benign, score=score, percent=25, scope="layer", selection="none")
    scored = score_neurons(model, harmful, benign, score=score)
    assert not any(len(hook_point) for hook_point in found.conformity)
    for hook_point, mine in zip(scored.harmful, found.rejection, strict=True):
        order = [index for index in hook_point.argsort(descending=True)[:12].tolist() if hook_point[index] >= 0]
        assert set(mine.tolist()) == set(order)
    assert found.provenance.selection == "none"


@pytest.mark.parametrize("score", ["magnitude", "write-contrast"])
def test_rejection_neurons_can_be_selected_alone(
    score: str, model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    scored = score_neurons(model, harmful, benign, score=score)
    both, alone = scored.top(25, "layer"), scored.top(25, "layer", "rejection")
    assert [one.tolist() for one in alone.rejection] == [one.tolist() for one in both.rejection]
    assert sum(map(len, both.conformity)) > 0 == sum(map(len, alone.conformity))
    assert alone.provenance.selection == "rejection"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "first"}, "tokens cannot be 'first': .*'last', 'prompt' or 'response'"),
        ({"last_tokens": 0}, "last_tokens cannot be 0"),
        ({"tokens": "prompt", "last_tokens": 2}, "requires tokens 'last'"),
        ({"score": "wanda", "last_tokens": 2}, "requires tokens 'last'"),
        ({"selection": "both"}, "selection cannot be 'both': .*'difference', 'rejection' or 'none'"),
        ({"percent": 0}, "percent cannot be 0"),
        ({"percnt": 3}, "There is no option percnt. Did you mean percent?"),
        ({"scope": "galaxy"}, "scope cannot be 'galaxy': .*'layer' or 'model'"),
    ],
)
def test_options_without_meaning_are_errors_before_any_work(
    options: dict[str, Any],
    message: str,
    model: ChatModel,
    harmful: list[str],
    benign: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model.model, "forward", None)
    with pytest.raises(SafetyNeuronsError, match=message):
        find(model, harmful, benign, **options)


@pytest.mark.parametrize("score", NAMES)
def test_progress_counts_every_pass(score: str, model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    steps: list[int] = []
    find(model, harmful, benign, score=score, other=model, response_tokens=2, advance=steps.append)
    chosen = scores.get(score)
    assert sum(steps) == passes(chosen, chosen.tokens) * (len(harmful) + len(benign))


def test_sums_of_parts_are_the_sums_of_the_whole(experts: ChatModel, harmful: list[str]) -> None:
    texts = [experts.render(prompt) for prompt in harmful]
    parts = [
        capture_sums(experts, texts[:1], tail=2, positions=3),
        capture_sums(experts, texts[1:], tail=2, positions=3),
    ]
    merged = CapturedSums.merged(parts).statistics()
    whole = capture_sums(experts, texts, tail=2, positions=3).statistics()
    assert merged.prompts == whole.prompts
    for name in ("count", "mean", "variance", "top_share", "by_position"):
        for mine, theirs in zip(getattr(merged, name), getattr(whole, name), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    # Merging leaves the parts as they were.
    assert parts[0].prompts == 1
    assert float(parts[0].sums[0].count.sum()) == 2 * 2
