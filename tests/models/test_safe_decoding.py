"""SafeDecoding against a plain reading of the paper: no cache, no batch, one token after the other."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation.defenses.safedecoding import Steering, complete_safely, steered
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import Completion, Sampling, complete

TEXTS = ["Hi", "Tell me a story.", "How do I wrap a present for a friend?"]
TOKENS = 8


@pytest.fixture
def texts(model: ChatModel) -> list[str]:
    return [model.render(text, "Sure" if "story" in text else "") for text in TEXTS]


def expert_of(model: ChatModel, size: float = 0.3) -> Callable[[], Any]:
    """A context in which other numbers are added to the MLPs' last weights."""

    @contextlib.contextmanager
    def expert() -> Iterator[None]:
        weight = model.hook_points[-1].write.weight  # type: ignore[attr-defined]
        before = weight.detach().clone()
        change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * size
        with torch.no_grad():
            weight.add_(change)
            try:
                yield
            finally:
                weight.copy_(before)

    return expert


def sample_space(base: Tensor, expert: Tensor, common: int) -> set[int]:
    """Two growing lists and what they share."""
    likeliest = [sorted(range(len(one)), key=lambda token: -one[token].item()) for one in (base, expert)]
    for size in range(1, len(base) + 1):
        shared = set(likeliest[0][:size]) & set(likeliest[1][:size])
        if len(shared) >= common:
            return shared
    raise AssertionError


def naive(model: ChatModel, expert: Callable[[], Any], text: str, steering: Steering) -> Completion:
    ids = model.encode([text])["input_ids"]
    start, ended = ids.shape[1], False
    for step in range(TOKENS):
        with torch.no_grad():
            before = model.model(input_ids=ids, use_cache=False).logits[0, -1].softmax(-1)
            with expert():
                after = model.model(input_ids=ids, use_cache=False).logits[0, -1].softmax(-1)
        chosen = int(before.argmax())
        if step < steering.first:
            space = sample_space(before, after, steering.common)
            weights = {token: before[token] + steering.alpha * (after[token] - before[token]) for token in space}
            chosen = max(weights, key=lambda token: weights[token].item())
        ids = torch.cat([ids, torch.tensor([[chosen]])], 1)
        if ended := chosen == model.tokenizer.eos_token_id:
            break
    return Completion(model.tokenizer.decode(ids[0, start:], skip_special_tokens=True), not ended)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "qwen2_moe"])
@pytest.mark.parametrize("steering", [Steering(), Steering(1.5, 5, 2)], ids=str)
def test_answers_are_those_of_a_plain_computation(
    make_model: Callable[..., ChatModel], architecture: str, steering: Steering
) -> None:
    model = make_model(architecture)
    expert = expert_of(model) if architecture != "qwen2_moe" else nothing
    texts = [model.render(text) for text in TEXTS]
    expected = [naive(model, expert, text, steering) for text in texts]
    assert complete_safely(model, expert, texts, TOKENS, steering) == expected
    assert [complete_safely(model, expert, [text], TOKENS, steering)[0] for text in texts] == expected
    if architecture == "llama":
        assert expected != complete(model, texts, TOKENS)


def nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


@pytest.mark.parametrize("sampling", [None, Sampling(1.0, 3)])
def test_the_model_alone_is_base(model: ChatModel, texts: list[str], sampling: Sampling | None) -> None:
    expert = expert_of(model)
    alone = complete(model, texts, TOKENS, sampling=sampling)
    assert complete_safely(model, expert, texts, TOKENS, Steering(first=0), sampling) == alone
    if sampling is None:
        # Every token is in the sample space, and the expert weighs nothing; nor is there any difference to weigh.
        assert complete_safely(model, expert, texts, TOKENS, Steering(0.0, TOKENS, 10**6)) == alone
        assert complete_safely(model, nothing, texts, TOKENS, Steering(3.0, TOKENS, 1)) == alone


def test_an_answer_that_ends_early_stays_as_it_is(model: ChatModel, texts: list[str]) -> None:
    """The token that one text begins its answer with is made an end; the others go on."""
    expert, steering = expert_of(model), Steering(first=2)
    usual = complete_safely(model, expert, texts, TOKENS, steering)
    first = [model.tokenizer(answer.text, add_special_tokens=False)["input_ids"][0] for answer in usual]
    assert first[0] not in first[1:]
    model.model.generation_config.eos_token_id = [1, first[0]]
    found = complete_safely(model, expert, texts, TOKENS, steering)
    assert not found[0].cut_off
    assert len(found[0].text) <= 1 < len(found[1].text)
    assert found == [complete_safely(model, expert, [text], TOKENS, steering)[0] for text in texts]


def test_drawn_answers_follow_from_the_seed(model: ChatModel, texts: list[str]) -> None:
    expert, steering = expert_of(model), Steering(first=4)
    drawn = [complete_safely(model, expert, texts, TOKENS, steering, Sampling(2.0, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    # So cold that only the heaviest token is drawn.
    cold = complete_safely(model, expert, texts, 4, steering, Sampling(1e-3, 0))
    assert cold == complete_safely(model, expert, texts, 4, steering)


def test_the_sample_space_is_the_smallest_that_has_enough() -> None:
    base, expert = torch.randn(2, 4, 40, generator=torch.Generator().manual_seed(0)).unbind()
    for common in (1, 5, 40, 50):
        found = steered(base, expert, Steering(2.0, 2, common))
        for row in range(len(base)):
            space = sample_space(base[row], expert[row], min(common, 40))
            assert set(found[row].isfinite().nonzero().flatten().tolist()) == space
    everywhere = 3 * expert.softmax(-1) - 2 * base.softmax(-1)
    torch.testing.assert_close(steered(base, expert, Steering(common=40)), everywhere)


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"first": -1}, {"common": 0}], ids=str)
def test_steering_without_sense_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(SafetyNeuronsError, match="SafeDecoding"):
        Steering(**options)
