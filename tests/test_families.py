"""Every preset's family: what its tokens, template and generation settings make of prompts and answers."""

import dataclasses
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.families import DEFAULT_SYSTEM, DISTINCT, FAMILIES, Traits, tokenizer_of, write_family
from safety_neurons.models.chat import ChatModel, Conversation, Turn
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import Completion, complete
from safety_neurons.models.load import load
from safety_neurons.models.presets import PRESETS
from safety_neurons.models.template import TODAY
from safety_neurons.tuning.batches import encode
from safety_neurons.tuning.corpus import Pair

WORDS = "Tell me how bread rises"
SYSTEM = "Answer in one word."


@pytest.fixture(scope="module", params=DISTINCT)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def traits(name: str) -> Traits:
    return FAMILIES[name]


@pytest.fixture(scope="module")
def model(name: str, traits: Traits, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder: Path = write_family(traits, tmp_path_factory.mktemp("family") / name)
    return load(folder, device="cpu", dtype="float32", chat_template=PRESETS[name].chat_template)


@pytest.fixture
def scripted(model: ChatModel) -> Iterator[list[str]]:
    """The tokens that the model says next, one a pass; it repeats the last one."""
    script: list[str] = []

    def say(_module: Any, _inputs: Any, logits: Tensor) -> Tensor:
        token = script.pop(0) if len(script) > 1 else script[0]
        said = torch.zeros_like(logits)
        said[..., model.tokenizer.convert_tokens_to_ids(token)] = 20.0
        return said

    handle = model.model.get_output_embeddings().register_forward_hook(say)
    yield script
    handle.remove()


def tokens(model: ChatModel, text: str) -> list[int]:
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    return ids


def rendered(model: ChatModel, *turns: Turn) -> str:
    """The rendered conversation; nothing is warned about but a date."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*writes the current date")
        return model.render_conversation(Conversation(turns))


def last_logits(model: ChatModel, texts: list[str]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = forward(model.model, model.encode(texts)).logits[:, -1]
    return logits


def test_every_preset_has_a_family_and_a_line_in_the_docs() -> None:
    assert FAMILIES.keys() == PRESETS.keys()
    page = Path(__file__).parents[1] / "docs" / "models.md"
    assert {*re.findall(r"^\| `(.+?)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)} == PRESETS.keys()


def test_the_users_words_are_there_once(model: ChatModel) -> None:
    text = rendered(model, Turn("user", WORDS))
    assert text.count(WORDS) == 1
    assert model.render(WORDS, prefill="Sure, ") == text + "Sure, "


def test_a_template_that_writes_the_beginning_writes_it_once(model: ChatModel, traits: Traits) -> None:
    ids = model.encode([model.render(WORDS)])["input_ids"][0].tolist()
    assert ids == tokens(model, model.render(WORDS))
    if traits.writes_bos:
        assert ids[0] == model.tokenizer.bos_token_id
        assert ids.count(ids[0]) == 1
        # The tokenizer would write it, too.
        assert model.tokenizer(model.render(WORDS))["input_ids"] == [ids[0], *ids]


def test_the_system_prompt_is_there_once_and_replaces_the_default(model: ChatModel, traits: Traits) -> None:
    assert (DEFAULT_SYSTEM in model.render(WORDS)) == (traits.system == "default")
    asked = model.with_system(SYSTEM)
    if traits.system == "refused":
        with pytest.warns(UserWarning, match="has no system role"):
            text = asked.render(WORDS)
    else:
        text = rendered(asked, Turn("user", WORDS))
    assert text.count(SYSTEM) == text.count(WORDS) == 1
    assert DEFAULT_SYSTEM not in text
    if traits.system in ("first turn", "last turn", "refused"):
        assert text == model.render(f"{SYSTEM}\n\n{WORDS}")


@pytest.mark.filterwarnings("ignore:.*has no system role", "ignore:.*writes the current date")
def test_a_dated_template_tells_the_same_date_every_day(model: ChatModel, traits: Traits) -> None:
    date = traits.date or f"{TODAY:%d %b %Y}"
    for asked in (model, model.with_system(SYSTEM)):
        assert (f"Today is {date}." in asked.render(WORDS)) == (traits.system == "dated")


def test_earlier_turns_are_kept_in_order(model: ChatModel) -> None:
    said = ["First question", "First answer", "Second question"]
    turns = [Turn("user", said[0]), Turn("assistant", said[1]), Turn("user", said[2])]
    text = rendered(model, *turns)
    assert [text.count(each) for each in said] == [1, 1, 1]
    assert sorted(said, key=text.index) == said
    # The answer opens as in a conversation of one turn.
    assert text.rpartition(said[2])[2] == model.render(WORDS).rpartition(WORDS)[2]


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("vicuna-7b-v1.5", "to the user's questions. USER: Hello ASSISTANT: Hi</s>USER: Bye ASSISTANT:"),
        (
            "guanaco-13b",
            "to the user's questions.\n### Human: Hello\n### Assistant: Hi</s>\n### Human: Bye\n### Assistant:",
        ),
    ],
)
def test_turns_of_presets_with_a_template_follow_each_other_as_in_training(name: str, ending: str) -> None:
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    text = tokenizer_of(FAMILIES[name]).apply_chat_template(
        turns, chat_template=PRESETS[name].chat_template, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    assert text.endswith(ending)


def test_thinking_is_switched_off_by_an_empty_thought(model: ChatModel, traits: Traits) -> None:
    on, off = (
        dataclasses.replace(model, template_options={"enable_thinking": thinking}).render(WORDS)
        for thinking in (True, False)
    )
    assert off == on + "<think>\n\n</think>\n\n" * traits.thinks
    # Off unless it is asked for.
    assert model.render(WORDS) == off
    assert not model.may_think
    assert dataclasses.replace(model, template_options={"enable_thinking": True}).may_think == traits.thinks
    if traits.thinks:
        earlier = [Turn("user", "Hello"), Turn("assistant", "<think>Greet.</think>\n\nHi"), Turn("user", WORDS)]
        assert "Greet" not in rendered(model, *earlier)


def test_the_tail_is_what_stands_between_the_words_and_the_answer(model: ChatModel) -> None:
    text = model.render(WORDS)
    before = text[: text.index(WORDS) + len(WORDS)]
    assert model.template_tail == len(tokens(model, text)) - len(tokens(model, before)) > 0


def test_padding_changes_nothing(model: ChatModel) -> None:
    texts = [model.render(WORDS), model.render(f"{WORDS}, and what it needs")]
    assert len({*map(len, texts)}) == 2
    alone = torch.cat([last_logits(model, [text]) for text in texts])
    torch.testing.assert_close(last_logits(model, texts), alone, rtol=1e-4, atol=1e-4)


def test_an_answer_ends_at_every_end_token(model: ChatModel, traits: Traits, scripted: list[str]) -> None:
    for end in traits.ends:
        scripted[:] = ["Sure", "Here", end, "Sure"]
        (answer,) = complete(model, [model.render(WORDS)], 6)
        assert answer == Completion("SureHere", cut_off=False)
        assert scripted == ["Sure"]
    (answer,) = complete(model, [model.render(WORDS)], 3)
    assert answer == Completion("SureSureSure", cut_off=True)


def test_greedy_is_greedy_whatever_the_files_say(model: ChatModel) -> None:
    texts = [model.render(WORDS), model.render(f"{WORDS}, and what it needs")]
    answers = complete(model, texts, 6)
    for text, answer in zip(texts, answers, strict=True):
        ids = tokens(model, text)
        for _ in range(6):
            sequence = torch.tensor([ids])
            inputs = {"input_ids": sequence, "attention_mask": torch.ones_like(sequence)}
            with torch.no_grad():
                ids = [*ids, int(forward(model.model, inputs).logits[0, -1].argmax())]
        assert answer.text == model.tokenizer.decode(ids[-6:], skip_special_tokens=True)


def test_a_tuned_answer_ends_as_the_template_ends_it(model: ChatModel, traits: Traits) -> None:
    pair = encode(model, Pair("refusal", "1", WORDS, "", "I cannot."))
    assert pair.input_ids == [
        *tokens(model, model.render(WORDS)),
        *pair.input_ids[-len(tokens(model, "I cannot.")) - 1 :],
    ]
    assert model.tokenizer.convert_ids_to_tokens(pair.input_ids[-1]) == traits.turn_end


def test_tied_weights_are_tied_and_count_once(model: ChatModel, traits: Traits) -> None:
    inputs, outputs = model.model.get_input_embeddings().weight, model.model.get_output_embeddings().weight
    assert (inputs.data_ptr() == outputs.data_ptr()) == traits.tied
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in model.model.state_dict().values()}
    assert model.parameters == sum(distinct.values())
    assert len(inputs) == len(model.tokenizer) + traits.spare
