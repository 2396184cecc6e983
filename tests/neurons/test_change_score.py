"""Two checkpoints on the same text, against both run by hand."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builders.quick import score_neurons
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.hook_points import DenseHookPoint


def activations(model: ChatModel, ids: Tensor) -> list[Tensor]:
    kept: list[Tensor] = []
    handles = [
        hook_point.write.register_forward_pre_hook(lambda _module, args: kept.append(args[0][0].detach()))
        for hook_point in model.hook_points
        if isinstance(hook_point, DenseHookPoint)
    ]
    with torch.no_grad():
        model.model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return kept


def test_it_is_the_root_mean_square_difference_on_generated_tokens(
    make_model: Callable[..., ChatModel], harmful: list[str], benign: list[str]
) -> None:
    model, other = make_model(seed=0), make_model(seed=1)
    found = score_neurons(model, harmful, benign, score="change", other=other, response_tokens=5, batch_size=16)
    for prompts, scores in ((harmful, found.harmful), (benign, found.benign)):
        squares: list[list[Tensor]] = [[], [], []]
        for prompt in prompts:
            answer = model.chat(prompt, max_new_tokens=5)
            ids = model.encode([model.render(prompt, answer)])["input_ids"]
            # One token a byte.
            new = len(answer.encode())
            for hook_point, (mine, theirs) in enumerate(
                zip(activations(model, ids), activations(other, ids), strict=True)
            ):
                squares[hook_point].append((mine - theirs)[-new:].square())
        for hook_point, values in enumerate(squares):
            torch.testing.assert_close(scores[hook_point], torch.cat(values).mean(0).sqrt(), rtol=1e-3, atol=1e-5)


def test_a_model_does_not_differ_from_itself(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    found = score_neurons(model, harmful, benign, score="change", other=model, response_tokens=3)
    assert all(not hook_point.any() for hook_point in (*found.harmful, *found.benign))


def no_work(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.hook_points
    monkeypatch.setattr(model.model, "forward", None)


def test_without_a_second_model_it_says_which_option_gives_one(
    model: ChatModel, harmful: list[str], benign: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(model, monkeypatch)
    with pytest.raises(SafetyNeuronsError, match=r"find\.other_model"):
        score_neurons(model, harmful, benign, score="change")


def test_models_of_other_shapes_cannot_be_compared(
    make_model: Callable[..., ChatModel], harmful: list[str], benign: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = make_model("llama"), make_model("llama")
    other.model.model.layers = other.model.model.layers[:2]
    # Its neurons are found anew.
    other = replace(other)
    no_work(model, monkeypatch)
    with pytest.raises(SafetyNeuronsError, match="differ in their layers or widths"):
        score_neurons(model, harmful, benign, score="change", other=other)


def test_models_that_read_other_tokens_cannot_be_compared(
    make_model: Callable[..., ChatModel], harmful: list[str], benign: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = make_model(), make_model()
    stranger = ChatModel(other.model, copy.deepcopy(other.tokenizer), "stranger", "stranger")
    stranger.tokenizer.add_tokens(["recipe"])
    no_work(model, monkeypatch)
    with pytest.raises(SafetyNeuronsError, match="tokenizers"):
        score_neurons(model, harmful, benign, score="change", other=stranger)
