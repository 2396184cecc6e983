"""A prompt that is longer than the model's context is named and left out; it neither fails nor runs on in silence."""

import pytest
import transformers

from builders.models import tiny_model
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.context import context_length
from safety_neurons.models.generate import Completion, generate

LONG = "Tell me " + "very " * 40 + "much."
SHORT = ("Hi", "Tell me about the sea, please.")


@pytest.fixture(params=["llama", "gpt2", "opt"])
def short_model(request: pytest.FixtureRequest) -> ChatModel:
    names = {"gpt2": {"n_positions": 128}, "opt": {}, "llama": {}}
    return tiny_model(request.param, max_position_embeddings=128, **names[request.param])


def test_a_prompt_that_does_not_fit_is_not_run_and_the_others_are(short_model: ChatModel) -> None:
    texts = [short_model.render(text) for text in (SHORT[0], LONG, SHORT[1])]
    found = dict(generate(short_model, texts, max_new_tokens=5))
    tokens = len(short_model.tokenizer(texts[1], add_special_tokens=False)["input_ids"])
    reason = f"its {tokens} tokens and an answer of 5 do not fit the context of 128 tokens"
    assert found[1] == Completion("", False, outcome="not run", reason=reason)
    assert found[1].unscored == f"not run: {reason}"
    alone = dict(generate(short_model, [texts[0], texts[2]], max_new_tokens=5))
    assert (found[0], found[2]) == (alone[0], alone[1])
    # It counts as done like any other.
    assert set(dict(generate(short_model, texts, max_new_tokens=5, done=frozenset({1, 2})))) == {0}


def test_the_last_length_that_fits_is_run(short_model: ChatModel) -> None:
    text = short_model.render("a")
    length = len(short_model.tokenizer(text, add_special_tokens=False)["input_ids"])
    full = short_model.render("a" * (128 - length - 4))
    longer = short_model.render("a" * (128 - length - 3))
    found = dict(generate(short_model, [full, longer], max_new_tokens=5))
    assert [found[index].outcome for index in (0, 1)] == ["answered", "not run"]
    assert set(short_model.too_long([full, longer], 4)) == set()
    assert short_model.encode([longer])["input_ids"].shape == (1, 124)


def test_reading_it_names_it(short_model: ChatModel) -> None:
    with pytest.raises(
        SafetyNeuronsError, match=r"too long for .* 2\d\d tokens do not fit the context of 128 .*Tell me"
    ):
        short_model.encode([short_model.render(SHORT[0]), short_model.render(LONG)])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("LlamaConfig", {"max_position_embeddings": 4096}, 4096),
        ("GPT2Config", {"n_positions": 1024}, 1024),
        ("BloomConfig", {}, None),
        (
            "Qwen2Config",
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e6,
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        (
            "LlamaConfig",
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 5e5,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        ("Gemma3Config", {"text_config": {"max_position_embeddings": 8192}}, 8192),
    ],
)
def test_context_length(name: str, options: dict[str, object], expected: int | None) -> None:
    assert context_length(getattr(transformers, name)(**options)) == expected
