"""Answers: the same alone and in a batch, with and without a cache, in one go and after a kill."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import Sampling, batches_by_length, complete, complete_to, generate, halve_when_full
from safety_neurons.models.tokens import padding_token

PROMPTS = ["Hi", "Tell me about the sea, please.", "A prompt of middle length", "Why?", "And one more to answer"]


def rendered(model: ChatModel) -> list[str]:
    return [model.render(prompt) for prompt in PROMPTS]


def greedy(model: ChatModel, text: str, tokens: int) -> str:
    """Token by token, without generate, without padding, without a cache."""
    prompt = model.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    row = prompt
    for _ in range(tokens):
        with torch.no_grad():
            best = model.model(input_ids=row, use_cache=False).logits[:, -1].argmax(1, keepdim=True)
        row = torch.cat([row, best], 1)
        if best.item() == model.tokenizer.eos_token_id:
            break
    answer = model.tokenizer.decode(row[0, prompt.shape[1] :], skip_special_tokens=True)
    assert isinstance(answer, str)
    return answer


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batched_answers_are_the_greedy_ones(name: str, batch_size: int, make_model: Callable[..., ChatModel]) -> None:
    model = make_model(name)
    texts = rendered(model)
    completions = generate(model, texts, max_new_tokens=6, batch_size=batch_size)
    answers = {index: completion.text for index, completion in completions}
    assert answers == {index: greedy(model, text, 6) for index, text in enumerate(texts)}


def test_an_answer_cut_to_a_length_is_the_answer_of_that_length(any_model: ChatModel) -> None:
    texts, lengths = rendered(any_model), (1, 4, 9)
    cut = complete_to(any_model, texts, lengths)
    for length in lengths:
        assert [answers[length] for answers in cut] == complete(any_model, texts, length)
    # Something was cut off.
    assert any(answers[4].text != answers[9].text for answers in cut)


def test_without_a_cache_the_answers_are_the_same(any_model: ChatModel) -> None:
    texts = rendered(any_model)
    cached = dict(generate(any_model, texts, max_new_tokens=5))
    assert dict(generate(any_model, texts, max_new_tokens=5, use_cache=False)) == cached
    assert len(set(cached.values())) > 1


def test_sampling_settings_of_the_model_are_not_used(model: ChatModel) -> None:
    texts = rendered(model)
    expected = dict(generate(model, texts, max_new_tokens=5))
    settings = model.model.generation_config
    assert settings is not None
    settings.update(do_sample=True, temperature=5.0, top_k=3, top_p=0.5)
    assert dict(generate(model, texts, max_new_tokens=5)) == expected


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of every batch that is encoded from here on."""
    seen: list[list[str]] = []
    original = ChatModel.encode

    def encode(self: ChatModel, texts: Sequence[str]) -> Any:
        seen.append(list(texts))
        return original(self, texts)

    monkeypatch.setattr(ChatModel, "encode", encode)
    return seen


@pytest.mark.parametrize("done", [{0}, {1, 3}, {0, 3}, {0, 1, 2, 3}])
def test_what_is_done_is_skipped_and_changes_no_batch(
    done: set[int], model: ChatModel, batches: list[list[str]]
) -> None:
    texts = rendered(model)
    every = dict(generate(model, texts, max_new_tokens=4, batch_size=2))
    complete = list(batches)
    batches.clear()
    rest = list(generate(model, texts, max_new_tokens=4, batch_size=2, done=frozenset(done)))
    assert dict(rest) == {index: answer for index, answer in every.items() if index not in done}
    assert len(rest) == len(dict(rest))
    skipped = {texts[index] for index in done}
    assert batches == [batch for batch in complete if not skipped.issuperset(batch)]


def test_nothing_is_computed_where_all_is_done(model: ChatModel, batches: list[list[str]]) -> None:
    assert list(generate(model, ["a", "b"], max_new_tokens=4, done=frozenset({0, 1}))) == []
    assert list(generate(model, [], max_new_tokens=4)) == []
    assert batches == []


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_batches_hold_every_text_once_in_order_of_length(size: int) -> None:
    texts = ["ccc", "a", "bb", "", "dddd", "aa", "a"]
    batches = batches_by_length(texts, size)
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(len(texts)))
    assert [len(texts[index]) for index in flat] == sorted(map(len, texts))
    assert all(len(batch) == size for batch in batches[:-1])


def test_batches_do_not_depend_on_the_order_of_the_texts() -> None:
    texts = ["ccc", "a", "bb", "", "dddd", "aa"]
    turned = texts[::-1]
    one, other = batches_by_length(texts, 2), batches_by_length(turned, 2)
    assert [[texts[index] for index in batch] for batch in one] == [
        [turned[index] for index in batch] for batch in other
    ]


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize(("limit", "parts"), [(8, [7]), (4, [3, 4]), (2, [1, 2, 2, 2]), (1, [1] * 7)])
def test_batches_are_halved_until_they_fit(failure: type[Exception], limit: int, parts: list[int]) -> None:
    def work(batch: list[int]) -> list[int]:
        if len(batch) > limit:
            raise failure
        return batch

    done = halve_when_full(work, list(range(7)))
    assert [len(part) for part in done] == parts
    assert [index for part in done for index in part] == list(range(7))


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError, MemoryError])
def test_a_single_prompt_that_does_not_fit_is_an_error(failure: type[Exception]) -> None:
    tried: list[int] = []

    def work(batch: list[int]) -> None:
        tried.append(len(batch))
        raise failure

    with pytest.raises(SafetyNeuronsError, match="single prompt"):
        halve_when_full(work, [1, 2, 3, 4])
    assert tried == [4, 2, 1]


def test_other_failures_are_not_taken_for_a_lack_of_memory() -> None:
    def work(batch: list[int]) -> None:
        raise ValueError(f"batch of {len(batch)}")

    with pytest.raises(ValueError, match="batch of 4"):
        halve_when_full(work, [1, 2, 3, 4])


def test_answers_are_the_same_where_memory_is_short(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = rendered(model)
    expected = dict(generate(model, texts, max_new_tokens=4))
    original = model.model.generate
    sizes: list[int] = []

    def small(**options: Any) -> Any:
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return original(**options)

    monkeypatch.setattr(model.model, "generate", small)
    assert dict(generate(model, texts, max_new_tokens=4)) == expected
    assert sizes == [5, 2, 3, 1, 2]


def test_padding_token_falls_back_to_the_end_of_sequence(model: ChatModel) -> None:
    assert padding_token(model) == 0
    model.tokenizer.pad_token = None
    assert padding_token(model) == model.tokenizer.eos_token_id == 1


def test_drawn_answers_follow_from_the_seed_alone(model: ChatModel) -> None:
    """Whatever was drawn before, and whatever is done already; and nothing of the caller's randomness is used up."""
    texts = rendered(model)

    def drawn(seed: int, done: frozenset[int] = frozenset()) -> dict[int, str]:
        sampling = Sampling(temperature=1.5, seed=seed)
        found = generate(model, texts, max_new_tokens=8, batch_size=2, done=done, sampling=sampling)
        return {index: answer.text for index, answer in found}

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = drawn(3)
    assert torch.equal(torch.rand(3), expected)
    assert drawn(3) == first
    assert drawn(4) != first
    assert drawn(3, frozenset({0, 1})) == {index: text for index, text in first.items() if index > 1}


def test_low_temperatures_come_near_the_greedy_answers(model: ChatModel) -> None:
    texts = rendered(model)
    greedy_ones = list(generate(model, texts, max_new_tokens=6))
    assert list(generate(model, texts, max_new_tokens=6, sampling=Sampling(1e-4, 0))) == greedy_ones
    assert list(generate(model, texts, max_new_tokens=6, sampling=Sampling(5.0, 0))) != greedy_ones
