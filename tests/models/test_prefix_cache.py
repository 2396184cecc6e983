"""Prompts with cached prefixes give the same answers as prompts that are read in full."""

from collections.abc import Callable

import pytest
import torch

from builders.quick import find
from safety_neurons.calibration.calibration import calibrate
from safety_neurons.models import prefix_cache
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import Completion, generate
from safety_neurons.models.prefix_cache import PrefixCache

TOKENS = 6


def plain(model: ChatModel, texts: list[str], batch_size: int = 3) -> dict[int, Completion]:
    return dict(generate(model, texts, max_new_tokens=TOKENS, batch_size=batch_size))


def cached(
    model: ChatModel, cache: PrefixCache, texts: list[str], done: frozenset[int] = frozenset()
) -> dict[int, Completion]:
    return dict(cache.generate(model, texts, max_new_tokens=TOKENS, batch_size=3, done=done))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gemma3", "opt", "gpt_neox", "phi3"])
def test_answers_are_those_of_prompts_read_anew(
    name: str, harmful: list[str], benign: list[str], make_model: Callable[..., ChatModel]
) -> None:
    model = make_model(name)
    texts = [model.render(prompt) for prompt in [*harmful, "Hi", *benign]]
    neurons = find(model, harmful, benign, percent=30)
    cache = PrefixCache.read(model, [texts[:2], texts], 3, 3)
    before = plain(model, texts)
    assert cached(model, cache, texts) == before
    changed = set()
    for toward in ("conformity", "rejection"):
        with calibrate(model, neurons, toward=toward, alpha=8, prompt_positions=3, generated_tokens=1):
            expected = plain(model, texts)
            assert cached(model, cache, texts) == expected
        changed |= {index for index in before if expected[index] != before[index]}
    # The calibration does something here, or the test would show nothing.
    assert changed
    assert None not in cache.caches.values()
    assert cached(model, cache, texts) == before


def test_prefixes_are_read_once(model: ChatModel, harmful: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [model.render(prompt) for prompt in harmful]
    cache = PrefixCache.read(model, [texts], 2, 3)
    first = plain(model, texts)
    monkeypatch.setattr(prefix_cache, "forward", None)
    assert cached(model, cache, texts) == first


def test_done_prompts_are_not_answered_again(model: ChatModel, harmful: list[str]) -> None:
    texts = [model.render(prompt) for prompt in harmful]
    everything = plain(model, texts)
    assert cached(model, PrefixCache.read(model, [texts], 2, 3), texts, frozenset({0, 4})) == {
        index: answer for index, answer in everything.items() if index not in (0, 4)
    }


def test_prompts_without_a_beginning_are_answered_all_the_same(model: ChatModel) -> None:
    texts = [model.render("Hi"), model.render("Hello there")]
    cache = PrefixCache.read(model, [texts], 500, 3)
    assert set(cache.caches.values()) == {None}
    assert cached(model, cache, texts) == plain(model, texts)


def test_full_memory_falls_back_to_smaller_batches(
    model: ChatModel, harmful: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [model.render(prompt) for prompt in harmful]
    expected = plain(model, texts)

    def full(*_args: object, **_options: object) -> list[Completion]:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(prefix_cache, "complete", full)
    assert cached(model, PrefixCache.read(model, [texts], 2, 3), texts) == expected
