"""Activations at the last token: against a pass over each prompt by hand, alone and in a batch, and gone afterwards."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding

from safety_neurons.calibration.detector import LastTokens, last_token_activations
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import follow_positions
from safety_neurons.models.neurons.hook_points import activation_hooks

TEXTS = ["ab", "Hello there.", "A longer text, padded.", "Hello there!", "Hello there."]
Naive = Callable[[ChatModel, Tensor], list[tuple[Tensor, Tensor]]]


def some_neurons(model: ChatModel) -> list[Tensor]:
    """Neurons of each site in no order, none in the second layer."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randperm(hook_point.width, generator=generator)[: 9 * hook_point.blocks if hook_point.layer != 1 else 0]
        for hook_point in model.hook_points
    ]


def by_hand(model: ChatModel, chosen: list[Tensor], naive: Naive) -> tuple[Tensor, Tensor]:
    """Activations of the chosen neurons and their routing [texts, chosen], one prompt after the other."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for text in TEXTS:
        hook_points = naive(model, model.encode([text])["input_ids"])
        for side, rows in enumerate(sides):
            rows.append(
                torch.cat(
                    [hook_point[side][-1][indices] for hook_point, indices in zip(hook_points, chosen, strict=True)]
                )
            )
    return torch.stack(sides[0]), torch.stack(sides[1])


def encode(model: ChatModel, texts: list[str], side: str) -> BatchEncoding:
    encoded = model.tokenizer(texts, return_tensors="pt", padding=True, padding_side=side, add_special_tokens=False)
    return cast(BatchEncoding, encoded)


def hooks_of(model: ChatModel) -> list[object]:
    return [
        (len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
        for module in model.model.modules()
    ]


def test_it_is_what_a_pass_over_each_prompt_alone_shows(any_model: ChatModel, naive_activations: Naive) -> None:
    chosen = some_neurons(any_model)
    expected, _ = by_hand(any_model, chosen, naive_activations)
    found = last_token_activations(any_model, chosen, TEXTS, 3)
    assert (found.dtype, found.shape) == (torch.float32, (len(TEXTS), sum(map(len, chosen))))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_neurons_of_experts_that_do_not_see_the_last_token_are_zero(
    mixture: ChatModel, naive_activations: Naive
) -> None:
    chosen = some_neurons(mixture)
    _, routing = by_hand(mixture, chosen, naive_activations)
    found = last_token_activations(mixture, chosen, TEXTS, 3)
    assert torch.equal(found == 0, routing == 0)
    assert (routing == 0).any()
    assert (routing != 0).any()


@pytest.mark.parametrize("size", [2, 32])
def test_batched_is_single(one_of_each: ChatModel, size: int) -> None:
    chosen = some_neurons(one_of_each)
    single = last_token_activations(one_of_each, chosen, TEXTS, 1)
    torch.testing.assert_close(last_token_activations(one_of_each, chosen, TEXTS, size), single, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [2, 32])
def test_the_order_of_the_prompts_does_not_matter(one_of_each: ChatModel, size: int) -> None:
    chosen, order = some_neurons(one_of_each), [3, 0, 4, 2, 1]
    found = last_token_activations(one_of_each, chosen, TEXTS, size)
    others = last_token_activations(one_of_each, chosen, [TEXTS[index] for index in order], size)
    torch.testing.assert_close(others, found[order], rtol=1e-4, atol=1e-5)


def test_the_order_of_the_neurons_is_the_given_one(one_of_each: ChatModel) -> None:
    chosen = some_neurons(one_of_each)
    found = last_token_activations(one_of_each, chosen, TEXTS, 32)
    turned = last_token_activations(one_of_each, [indices.flip(0) for indices in chosen], TEXTS, 32)
    parts = found.split(list(map(len, chosen)), 1)
    assert torch.equal(turned, torch.cat([part.flip(1) for part in parts], 1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_not_the_last_token(one_of_each: ChatModel, side: str) -> None:
    model, chosen = one_of_each, some_neurons(one_of_each)
    with torch.inference_mode(), follow_positions(model.model) as where:
        gathered = LastTokens(where, chosen)
        with activation_hooks(gathered.hooks(model.hook_points)):
            inputs = encode(model, TEXTS, side)
            # Absolute positions would count padding on the left.
            positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
            options: dict[str, Any] = {"position_ids": positions} if "opt" not in model.name else {}
            model.model(**inputs, **options)
    expected = last_token_activations(model, chosen, TEXTS, 1)
    torch.testing.assert_close(gathered.values, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_generated_tokens_change_nothing_and_the_next_batch_begins_with_zeros(
    one_of_each: ChatModel, use_cache: bool
) -> None:
    model, chosen = one_of_each, some_neurons(one_of_each)
    expected = last_token_activations(model, chosen, TEXTS, 1)
    with torch.inference_mode(), follow_positions(model.model) as where:
        gathered = LastTokens(where, chosen)
        with activation_hooks(gathered.hooks(model.hook_points)):
            for batch in ([0, 1, 2, 3, 4], [0, 1], [2, 3], [1, 0], [2]):
                inputs = model.encode([TEXTS[index] for index in batch])
                model.model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, use_cache=use_cache)
                torch.testing.assert_close(gathered.values, expected[batch], rtol=1e-3, atol=1e-4)


def test_no_chosen_neurons_are_no_columns(one_of_each: ChatModel) -> None:
    nothing = [torch.empty(0, dtype=torch.long) for _ in one_of_each.hook_points]
    assert last_token_activations(one_of_each, nothing, TEXTS, 2).shape == (len(TEXTS), 0)


def test_no_prompts_are_no_rows(model: ChatModel) -> None:
    assert last_token_activations(model, some_neurons(model), [], 2).shape == (0, 18)


def test_half_precision_models_give_float32(model: ChatModel) -> None:
    chosen = some_neurons(model)
    exact = last_token_activations(model, chosen, TEXTS, 2)
    model.model.to(torch.bfloat16)
    found = last_token_activations(model, chosen, TEXTS, 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.1)


def test_progress_counts_every_prompt_and_a_full_memory_halves_the_batch(model: ChatModel) -> None:
    chosen = some_neurons(model)
    sizes: list[int] = []
    seen: list[int] = []

    def full(_module: object, _args: object, kwargs: dict[str, Tensor]) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise MemoryError

    expected = last_token_activations(model, chosen, TEXTS, 2)
    handle = model.model.base_model.register_forward_pre_hook(full, with_kwargs=True)
    found = last_token_activations(model, chosen, TEXTS, 4, seen.append)
    handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    # Prefixes, which are read alone, do not count.
    assert ([size for size in sizes if size > 1], seen) == ([4, 2, 2], [4, 1])


def test_no_hook_is_left_also_after_an_exception(one_of_each: ChatModel) -> None:
    before, chosen = hooks_of(one_of_each), some_neurons(one_of_each)
    last_token_activations(one_of_each, chosen, TEXTS, 2)
    assert hooks_of(one_of_each) == before
    failing = one_of_each.model.base_model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        last_token_activations(one_of_each, chosen, TEXTS, 2)
    failing.remove()
    assert hooks_of(one_of_each) == before
