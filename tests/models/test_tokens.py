"""Padding and end tokens: a tokenizer, a model or a file may name them, name others, or name none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from builders.models import BENIGN, HARMFUL
from builders.quick import find, tune
from safety_neurons.evaluation.defenses.perplexity_filter import PerplexityFilter
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import generate
from safety_neurons.models.likelihood import nll, read_answers
from safety_neurons.models.tokens import answer_end, end_tokens, left_padded, padding_token
from safety_neurons.tuning.batches import encode
from safety_neurons.tuning.corpus import Corpus, Pair

TEXTS = ["Hi", "Tell me about the sea, please.", "Why?"]


def no_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = None


def end_as_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = tokenizer.eos_token


def no_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = tokenizer.eos_token = None


def padding_without_embedding(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})


CHANGES = [no_padding, end_as_padding, no_special_tokens, padding_without_embedding]
Change = Callable[[PreTrainedTokenizerFast], None]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_results_are_the_same_whatever_pads(name: str, change: Change, make_model: Callable[..., ChatModel]) -> None:
    pairs = Corpus(
        (Pair("refusal", "id", "Hi", "", "No."), Pair("benign", "id", "Tell me a long story.", "", "Once upon a time"))
    )

    def results(model: ChatModel) -> list[Any]:
        texts = [model.render(text) for text in TEXTS]
        with torch.no_grad():
            logits = model.model(**model.encode(texts)).logits[:, -1]
        neurons = find(model, HARMFUL, BENIGN, percent=20.0)
        return [
            logits.tolist(),
            dict(generate(model, texts, max_new_tokens=6)),
            neurons.indices(),
            nll(read_answers(model, texts, ["Sure", "No, I will not.", "x"], 8)),
            PerplexityFilter(name="", source="", description="").nll(model, TEXTS),
            tune(model, neurons, pairs, epochs=1).digest,
        ]

    plain, changed = make_model(name), make_model(name)
    change(changed.tokenizer)
    before = changed.tokenizer.init_kwargs | dict(changed.tokenizer.special_tokens_map)
    found = results(changed)
    expected = results(plain)
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(expected[0]))
    assert found[1:3] == expected[1:3]
    assert found[3] == pytest.approx(expected[3])
    assert found[4] == pytest.approx(expected[4])
    assert changed.tokenizer.init_kwargs | dict(changed.tokenizer.special_tokens_map) == before


@pytest.mark.parametrize("change", CHANGES)
def test_padding_is_a_token_with_an_embedding(change: Change, model: ChatModel) -> None:
    change(model.tokenizer)
    assert padding_token(model) == 1
    encoded = model.encode(["ab", "abcde"])
    assert encoded["input_ids"][0, :3].tolist() == [1, 1, 1]
    assert encoded["attention_mask"].tolist() == [[0, 0, 0, 1, 1], [1] * 5]


def test_without_any_special_token_some_token_pads(model: ChatModel) -> None:
    no_special_tokens(model.tokenizer)
    model.tokenizer.chat_template = None
    model.model.generation_config.eos_token_id = model.model.config.eos_token_id = None
    assert end_tokens(model) == answer_end(model) == []
    assert padding_token(model) == 0
    alone = [dict(generate(model, [text], max_new_tokens=4))[0] for text in TEXTS]
    assert dict(generate(model, TEXTS, max_new_tokens=4)) == dict(enumerate(alone))


def test_left_padded() -> None:
    encoded = left_padded([[5, 6], [7], []], 9)
    assert encoded["input_ids"].tolist() == [[5, 6], [9, 7], [9, 9]]
    assert encoded["attention_mask"].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert left_padded([], 9)["input_ids"].shape[0] == 0


@pytest.mark.parametrize(
    ("of_generation", "of_model", "of_tokenizer", "expected"),
    [
        (1, 1, "<|end|>", [1]),
        ([1, 2], 1, "<|end|>", [1, 2]),
        ([7], None, "<|end|>", [7, 1]),
        (None, [7, 8], "<|end|>", [7, 8, 1]),
        (None, None, "<|end|>", [1]),
        ([None, -1, 10**6, 2], 1, None, [2, 1]),
        (None, None, None, [1]),
    ],
)
def test_all_that_ends_a_turn_ends_the_answer(
    of_generation: Any, of_model: Any, of_tokenizer: str | None, expected: list[int], model: ChatModel
) -> None:
    model.model.generation_config.eos_token_id = of_generation
    model.model.config.eos_token_id = of_model
    model.tokenizer.eos_token = of_tokenizer
    assert end_tokens(model) == expected


def test_training_ends_an_answer_with_the_templates_own_end(model: ChatModel) -> None:
    model.tokenizer.eos_token = "<|user|>"
    assert encode(model, Pair("refusal", "id", "Hi", "", "No.")).input_ids[-1] == 1
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    without = ChatModel(model.model, model.tokenizer, "other", "other")
    assert encode(without, Pair("refusal", "id", "Hi", "", "No.")).input_ids[-1] == 2


@pytest.mark.parametrize("content", ["m['content']", "m['content'][0]['text']"])
def test_the_token_that_ends_a_turn_in_the_template_ends_the_answer(content: str, model: ChatModel) -> None:
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    model.model.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
    turn = model.tokenizer.convert_tokens_to_ids("<|eot|>")
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ " + content + " }}END{% endfor %}<|assistant|>"
    for end, expected in (("\n<|eot|>\n", [1, turn]), ("\n", [1])):
        model.tokenizer.chat_template = template.replace("END", end).replace("<|assistant|>", "")
        assert end_tokens(ChatModel(model.model, model.tokenizer, "any", "any")) == expected
