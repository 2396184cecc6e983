"""The engine in this process: the model's own answers, by conversation, drawn or not."""

from collections.abc import Callable

import pytest

from safety_neurons.engines.engine import InProcess, answers, weights_of
from safety_neurons.models.chat import ChatModel, Conversation, Turn
from safety_neurons.models.generate import Sampling, generate

ASKED = [
    Conversation.of("Hi"),
    Conversation.of("Tell me about the sea, please.", prefill="Sure,"),
    Conversation.of("A prompt of middle length", system="Be brief."),
    Conversation((Turn("user", "Why?"), Turn("assistant", "Because."), Turn("user", "And now?"))),
]


def test_answers_are_those_of_the_rendered_conversations(model: ChatModel) -> None:
    texts = [
        "<|user|>Hi<|end|><|assistant|>",
        "<|user|>Tell me about the sea, please.<|end|><|assistant|>Sure,",
        "<|system|>Be brief.<|end|><|user|>A prompt of middle length<|end|><|assistant|>",
        "<|user|>Why?<|end|><|assistant|>Because.<|end|><|user|>And now?<|end|><|assistant|>",
    ]
    expected = dict(generate(model, texts, max_new_tokens=6, batch_size=2))
    found = answers(InProcess(model, batch_size=2), ASKED, max_new_tokens=6)
    assert found == [expected[index] for index in range(4)]
    assert len(set(found)) == 4


def test_half_a_surrogate_stops_no_answer(model: ChatModel) -> None:
    asked = [Conversation.of("a \ud83d b", before=(Turn("user", "c"), Turn("assistant", "\udfff")))]
    for sampling in (None, Sampling(1.0, 0)):
        [found] = answers(InProcess(model), asked, max_new_tokens=3, sampling=sampling)
        assert found.outcome == "answered"


def test_what_is_done_is_left_out(model: ChatModel) -> None:
    engine = InProcess(model, batch_size=2)
    every = dict(engine.answer(ASKED, max_new_tokens=6))
    rest = dict(engine.answer(ASKED, max_new_tokens=6, done=frozenset({0, 3})))
    assert rest == {index: every[index] for index in (1, 2)}


def test_drawn_answers_follow_from_the_seed_and_what_is_asked(model: ChatModel) -> None:
    engine = InProcess(model, batch_size=2)

    def drawn(seed: int) -> list[str]:
        return [answer.text for answer in answers(engine, ASKED, max_new_tokens=8, sampling=Sampling(1.5, seed))]

    first = drawn(1)
    greedy = [answer.text for answer in answers(engine, ASKED, max_new_tokens=8)]
    assert drawn(1) == first
    assert drawn(2) != first
    assert greedy != first


def test_identities_are_those_of_what_answers_depend_on(model: ChatModel, make_model: Callable[..., ChatModel]) -> None:
    engine = InProcess(model)
    assert engine.identity == InProcess(make_model()).identity
    assert engine.identity == InProcess(model, batch_size=3).identity
    others = [
        InProcess(model.with_system("Be kind.")),
        InProcess(make_model(seed=1)),
        engine.under("guard"),
        engine.under("guard").under("tuned"),
        engine.under("tuned").under("guard"),
    ]
    identities = [engine.identity, *(other.identity for other in others)]
    assert len(set(identities)) == len(identities)


def test_a_change_has_a_name_and_leaves_the_engine_alone(model: ChatModel) -> None:
    engine = InProcess(model, batch_size=3)
    changed = engine.under("guard").under("tuned")
    assert (changed.change, engine.change) == ("guard+tuned", "")
    assert (changed.batch_size, changed.name) == (3, model.name)
    assert weights_of(changed, "anything") is model


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_engines_of_other_architectures_answer_too(architecture: str, make_model: Callable[..., ChatModel]) -> None:
    model = make_model(architecture)
    alone = [answers(InProcess(model), [one], max_new_tokens=5)[0] for one in ASKED]
    assert answers(InProcess(model, batch_size=4), ASKED, max_new_tokens=5) == alone


def test_another_template_or_system_prompt_is_another_engine(model: ChatModel) -> None:
    template = model.tokenizer.chat_template
    before = InProcess(model).identity
    assert InProcess(model).identity == before
    assert InProcess(model.with_system("Be brief.")).identity != before
    # The last one renders the same single turn.
    others = [template.replace("<|end|>", "<|end|> "), template + "{% if messages | length > 2 %}!{% endif %}"]
    try:
        for model.tokenizer.chat_template in others:
            assert InProcess(model).identity != before
    finally:
        model.tokenizer.chat_template = template
