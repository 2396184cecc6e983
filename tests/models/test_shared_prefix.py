"""Reading what prompts share once changes nothing beyond rounding."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.models import BENIGN, HARMFUL
from builders.quick import find
from safety_neurons.calibration.calibration import calibrate
from safety_neurons.calibration.guard import fit_guard, guard
from safety_neurons.models import shared_prefix
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import follow_positions, forward
from safety_neurons.models.generate import generate
from safety_neurons.models.shared_prefix import Prompts, can_share, read_ahead, share_prefix
from safety_neurons.neurons.capture import capture_sums

SYSTEM = "You answer briefly, and in rhyme."
REQUESTS = ("Hi", "Tell me about the sea.", "Why?", "What is a very long question about nothing at all?")


def prompts_of(model: ChatModel) -> list[str]:
    return [model.with_system(SYSTEM).render(request) for request in REQUESTS]


def run(model: ChatModel, prompts: Prompts) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = forward(model.model, prompts.inputs, cache=prompts.cache).logits[:, -1]
    return logits


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Read all prompts whole from now on."""
    return lambda: monkeypatch.setattr(shared_prefix, "WORTHWHILE", 10**6)


@pytest.mark.parametrize("read", [share_prefix, read_ahead])
def test_logits_are_those_of_whole_prompts(any_model: ChatModel, read: Callable[..., Prompts]) -> None:
    inputs = any_model.encode(prompts_of(any_model))
    prompts = read(any_model.model, inputs, own=3)
    assert prompts.cache is not None
    assert prompts.unread.shape[1] < inputs["input_ids"].shape[1] - len(SYSTEM) // 2
    found = run(any_model, prompts)
    torch.testing.assert_close(found, run(any_model, Prompts(dict(inputs), None)), rtol=1e-3, atol=1e-4)


def test_the_prefix_is_read_for_one_prompt(model: ChatModel) -> None:
    read: list[tuple[int, ...]] = []
    can_share(model.model, 1)
    handle = model.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0].shape))
    inputs = model.encode(prompts_of(model))
    run(model, share_prefix(model.model, inputs))
    handle.remove()
    (alone, prefix), (together, rest) = read
    assert (alone, together, prefix + rest) == (1, len(REQUESTS), inputs["input_ids"].shape[1])


def test_answers_are_those_to_whole_prompts(one_of_each: ChatModel, whole: Callable[[], None]) -> None:
    model = one_of_each.with_system(SYSTEM)
    texts = [model.render(request) for request in REQUESTS]
    shared = list(generate(model, texts, max_new_tokens=6, batch_size=3))
    whole()
    assert shared == list(generate(model, texts, max_new_tokens=6, batch_size=3))


@pytest.mark.parametrize(
    "options",
    [{}, {"prompt_positions": 2, "generated_tokens": 2}, {"prompt_positions": "template"}, {"prompt_positions": "all"}],
)
def test_calibration_is_that_of_whole_prompts(
    options: dict[str, Any], one_of_each_tunable: ChatModel, whole: Callable[[], None]
) -> None:
    model = one_of_each_tunable.with_system(SYSTEM)
    texts = [model.render(request) for request in REQUESTS]
    neurons = find(model, HARMFUL, BENIGN, score="write-contrast", percent=20, positions=6)

    def logits() -> Tensor:
        with calibrate(model, neurons, toward="rejection", alpha=4.0, **options):
            return run(model, share_prefix(model.model, model.encode(texts)))

    shared = logits()
    whole()
    torch.testing.assert_close(shared, logits(), rtol=1e-3, atol=1e-4)


def test_guard_decides_as_on_whole_prompts(one_of_each_tunable: ChatModel, whole: Callable[[], None]) -> None:
    model = one_of_each_tunable.with_system(SYSTEM)
    neurons = find(model, HARMFUL, BENIGN, score="write-contrast", percent=30, positions=6)
    fitted = replace(fit_guard(model, neurons, HARMFUL, BENIGN, false_positive_rate=0.3), alpha=8.0)
    texts = [model.render(request) for request in (*HARMFUL, *BENIGN)]

    def guarded() -> tuple[list[Any], Tensor]:
        with guard(model, fitted) as decided:
            return list(generate(model, texts, max_new_tokens=6, batch_size=len(texts))), decided.scores

    answers, scores = guarded()
    whole()
    expected, expected_scores = guarded()
    torch.testing.assert_close(scores, expected_scores, rtol=1e-3, atol=1e-5)
    assert answers == expected


@pytest.mark.parametrize("tail", [1, 4, None])
def test_statistics_are_those_of_whole_prompts(
    tail: int | None, one_of_each: ChatModel, whole: Callable[[], None]
) -> None:
    def sums() -> Iterator[Tensor]:
        for each in capture_sums(one_of_each, prompts_of(one_of_each), tail=tail, positions=2).sums:
            yield from (each.total, each.absolute, each.square, each.by_position)

    shared = list(sums())
    whole()
    for found, expected in zip(shared, sums(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_tokens_that_matter_are_no_part_of_the_prefix(model: ChatModel) -> None:
    inputs = model.encode(prompts_of(model))
    lengths = inputs["attention_mask"].sum(1)
    unread = share_prefix(model.model, inputs, own=30).unread
    assert int(unread.sum(1).min()) == 30
    with follow_positions(model.model, reach=20):
        assert int(share_prefix(model.model, inputs).unread.sum(1).min()) >= 20
    for own, reach in ((int(lengths.min()), 0), (1, None)):
        with follow_positions(model.model, reach=reach):
            assert share_prefix(model.model, inputs, own=own).cache is None


def test_nothing_is_shared_by_one_prompt_or_by_prompts_that_begin_otherwise(model: ChatModel) -> None:
    texts = prompts_of(model)
    for chosen in (texts[:1], [texts[0], f"x{texts[1]}"]):
        assert share_prefix(model.model, model.encode(chosen)).cache is None


def test_hooks_see_nothing_of_the_prefix(model: ChatModel) -> None:
    seen: list[Tensor] = []
    inputs = model.encode(prompts_of(model))
    with follow_positions(model.model, lambda: seen.append(torch.empty(0)), reach=1) as where:
        prompts = share_prefix(model.model, inputs)
        assert (where.offsets == torch.iinfo(torch.long).min).all()
        assert not seen
        run(model, prompts)
        assert len(seen) == 1
        assert where.offsets[:, -1].tolist() == [-1] * len(REQUESTS)


def test_a_model_that_counts_positions_itself_reads_whole_prompts(model: ChatModel) -> None:
    def count(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        first = 0 if cache is None else cache.get_seq_length()
        tokens = kwargs["input_ids"].shape[1]
        return args, kwargs | {"position_ids": torch.arange(first, first + tokens)[None]}

    model.model.model.register_forward_pre_hook(count, with_kwargs=True)
    assert not can_share(model.model, 10)
    assert share_prefix(model.model, model.encode(prompts_of(model))).cache is None


def test_attention_windows_bound_what_is_shared(make_model: Callable[..., ChatModel]) -> None:
    """Padding between prefix and prompt would push tokens out of the window."""
    model = make_model("gpt_oss").model
    assert can_share(model, 128)
    assert not can_share(model, 129)
