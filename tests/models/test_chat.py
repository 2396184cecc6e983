"""Rendering: what the template makes of a system prompt, a prefill and options."""

import dataclasses
import warnings
from collections.abc import Callable

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import generate

TURN = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[answer]"
REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[answer]"
)
IGNORES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}{% endfor %}"
    "[answer]"
)
SYSTEM = "Be brief and kind."


def with_template(model: ChatModel, template: str | None) -> ChatModel:
    model.tokenizer.chat_template = template
    return model


def test_a_user_turn(model: ChatModel) -> None:
    assert model.render("Hello there") == "<|user|>Hello there<|end|><|assistant|>"


def test_prefill_is_the_beginning_of_the_answer(model: ChatModel) -> None:
    assert model.render("Hello", prefill=" Sure, ") == model.render("Hello") + " Sure, "
    asked = model.with_system(SYSTEM)
    assert asked.render("Hello", prefill="Sure") == asked.render("Hello") + "Sure"


def test_system_prompt_where_the_template_has_a_system_role(model: ChatModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = model.with_system(SYSTEM).render("Hello")
    assert text == f"<|system|>{SYSTEM}<|end|><|user|>Hello<|end|><|assistant|>"
    assert model.render("Hello") == "<|user|>Hello<|end|><|assistant|>"


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, IGNORES_SYSTEM], ids=["refuses", "ignores"])
def test_system_prompt_goes_before_the_users_turn_where_the_template_has_no_system_role(
    template: str, model: ChatModel
) -> None:
    asked = with_template(model, template).with_system(SYSTEM)
    with pytest.warns(UserWarning, match=f"{model.name} has no system role"):
        text = asked.render("Hello", prefill="Sure")
    assert text == f"[user]{SYSTEM}\n\nHello[answer]Sure"


def test_a_system_prompt_that_the_template_trims_is_still_there(model: ChatModel) -> None:
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}{% endfor %}[answer]"
    asked = with_template(model, template).with_system(f"  {SYSTEM}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asked.render("Hello") == f"[system]{SYSTEM}[user]Hello[answer]"


def test_a_tokenizer_without_template_is_an_error_that_names_the_way_out(model: ChatModel) -> None:
    with pytest.raises(SafetyNeuronsError, match=f"{model.name}.*chat_template"):
        with_template(model, None).render("Hello")


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('never') }}", "{% for m in messages %}", "{{ 1 | nofilter }}"]
)
@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.filterwarnings("ignore:The chat template")
def test_a_template_that_cannot_be_rendered_is_an_error(template: str, system: str | None, model: ChatModel) -> None:
    with pytest.raises(SafetyNeuronsError, match="cannot be rendered"):
        with_template(model, template).with_system(system).render("Hello")


def test_template_options_reach_the_template(model: ChatModel) -> None:
    template = TURN + "{% if not enable_thinking %}<nothing to think>{% endif %}"
    thinking = dataclasses.replace(with_template(model, template), template_options={"enable_thinking": True})
    silent = dataclasses.replace(thinking, template_options={"enable_thinking": False})
    assert thinking.render("Hello") == "[user]Hello[answer]"
    assert silent.render("Hello") == "[user]Hello[answer]<nothing to think>"


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_padded_on_the_left_whatever_the_tokenizer_prefers(side: str, model: ChatModel) -> None:
    model.tokenizer.padding_side = side
    encoded = model.encode(["ab", "abcde"])
    assert encoded["attention_mask"].tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert encoded["input_ids"][0, :3].tolist() == [model.tokenizer.pad_token_id] * 3
    assert model.tokenizer.decode(encoded["input_ids"][0, 3:]) == "ab"


def test_no_special_token_is_added_to_what_the_template_wrote(model: ChatModel) -> None:
    plain = model.encode(["ab"])["input_ids"]
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 1)]
    )
    assert len(model.tokenizer("ab")["input_ids"]) == 3
    assert torch.equal(model.encode(["ab"])["input_ids"], plain)


@pytest.mark.filterwarnings("ignore:The chat template")
@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("added", [[], ["[answer]"], ["[ans", "wer]"]])
@pytest.mark.parametrize("end", ["", "\n", "<|end|><|assistant|>", "[/user]\n[answer]", " {{ messages | length }}: "])
def test_template_tail_counts_the_tokens_behind_the_users_words(
    end: str, added: list[str], system: str | None, model: ChatModel
) -> None:
    model.tokenizer.add_tokens(added)
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}" + end
    asked = with_template(model, template).with_system(system)
    for words in ("Hello there", "What is it?", "1, 2, 3"):
        behind = asked.render(words).rpartition(words)[2]
        assert asked.template_tail == (len(model.tokenizer.tokenize(behind)) if behind else 0)


def test_chat_is_the_greedy_answer(model: ChatModel) -> None:
    expected = dict(generate(model, [model.render("Hello")], max_new_tokens=6))[0].text
    assert model.chat("Hello", max_new_tokens=6) == expected
    assert expected


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_tied_weights_count_once(name: str, make_model: Callable[..., ChatModel]) -> None:
    model = make_model(name)
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in model.model.state_dict().values()}
    assert model.parameters == sum(distinct.values())
