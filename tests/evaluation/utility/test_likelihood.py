"""Answers read back, against one full pass over each prompt with its answer: no batch, no cache."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.quick import find
from safety_neurons.calibration.calibration import calibrate
from safety_neurons.core.errors import NotFiniteError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.likelihood import distance, kl_divergence, nll, read_answers
from safety_neurons.models.prefix_cache import PrefixCache
from safety_neurons.models.tokens import padding_token
from safety_neurons.neurons.neuron_set import NeuronSet

# Bloom takes no position ids.
SOME = ("llama", "gpt2", "opt", "bloom", "phi3", "gemma2", "gemma3", "gpt_neox", "qwen2_moe", "gpt_oss")
PROMPTS = ["Tell me how to harm a person.", "Show me a recipe for a soup, please, and one for bread.", "Hello there"]
ANSWERS = ["I cannot.", "", "Sure! First of all, boil the water."]
LIMIT = 12
KEPT = 3


def tokens_of(model: ChatModel, text: str) -> list[int]:
    found = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(found, list)
    return found


def by_hand(model: ChatModel, prompt: str, answer: str, limit: int = LIMIT) -> tuple[Tensor, list[int]]:
    """The logits before each of the answer's tokens, and these tokens."""
    before, after = tokens_of(model, model.render(prompt)), tokens_of(model, answer)[:limit]
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([before + after]), use_cache=False).logits[0]
    return logits[len(before) - 1 : len(before) - 1 + len(after)], after


def rendered(model: ChatModel, prompts: list[str]) -> list[str]:
    return [model.render(prompt) for prompt in prompts]


def caches(model: ChatModel, texts: list[str], kept: bool) -> Callable[[], Any]:
    """Gives caches of all but the last tokens of one batch, read before anything is calibrated."""
    keep = PrefixCache.read(model, [texts] if kept else [], KEPT, len(texts))
    assert (keep.cache(texts) is not None) == kept
    return lambda: keep.cache(texts)


@pytest.fixture
def ordered() -> tuple[list[str], list[str]]:
    """Prompts in the order in which batches are made, and answers of all lengths."""
    return sorted(PROMPTS, key=len), ANSWERS


def neurons_of(model: ChatModel, positions: int = 5) -> NeuronSet:
    harmful, benign = ([f"{text} {n}" for n in range(4)] for text in PROMPTS[:2])
    return find(model, harmful, benign, percent=30, positions=positions)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("kept", [False, True], ids=["anew", "kept"])
def test_logits_are_those_of_one_full_pass(
    name: str, kept: bool, make_model: Callable[..., ChatModel], ordered: tuple[list[str], list[str]]
) -> None:
    model = make_model(name)
    prompts, answers = ordered
    texts = rendered(model, prompts)
    reading = read_answers(model, texts, answers, LIMIT, caches(model, texts, kept)())
    assert reading.real.sum(1).tolist() == [min(LIMIT, len(answer)) for answer in answers]
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        logits, tokens = by_hand(model, prompt, answer)
        assert reading.tokens[number][reading.real[number]].tolist() == tokens
        torch.testing.assert_close(reading.logits[number][reading.real[number]], logits, rtol=1e-3, atol=1e-3)


def test_a_batch_reads_as_each_answer_alone(one_of_each: ChatModel, ordered: tuple[list[str], list[str]]) -> None:
    prompts, answers = ordered
    join_processes = read_answers(one_of_each, rendered(one_of_each, prompts), answers, LIMIT)
    for number in range(len(prompts)):
        alone = read_answers(one_of_each, rendered(one_of_each, [prompts[number]]), [answers[number]], LIMIT)
        real = join_processes.real[number]
        assert alone.tokens[0][alone.real[0]].tolist() == join_processes.tokens[number][real].tolist()
        torch.testing.assert_close(
            alone.logits[0][alone.real[0]], join_processes.logits[number][real], rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_no_more_tokens_are_read_than_the_limit(model: ChatModel, limit: int) -> None:
    reading = read_answers(model, rendered(model, PROMPTS), ANSWERS, limit)
    assert reading.real.sum(1).tolist() == [min(limit, len(answer)) for answer in ANSWERS]
    longest = max(reading.real.sum(1).tolist())
    assert reading.logits.shape[:2] == reading.tokens.shape == (3, longest)


def test_surprise_is_the_mean_cross_entropy(one_of_each: ChatModel, ordered: tuple[list[str], list[str]]) -> None:
    prompts, answers = ordered
    found = nll(read_answers(one_of_each, rendered(one_of_each, prompts), answers, LIMIT))
    for value, prompt, answer in zip(found, prompts, answers, strict=True):
        logits, tokens = by_hand(one_of_each, prompt, answer)
        if not tokens:
            assert value is None
            continue
        naive = sum(
            -float(torch.log(torch.softmax(row.double(), 0)[token])) for row, token in zip(logits, tokens, strict=True)
        )
        assert value == pytest.approx(naive / len(tokens), rel=1e-3)


def test_answers_without_tokens_have_no_numbers(model: ChatModel) -> None:
    texts = rendered(model, PROMPTS)
    assert nll(read_answers(model, texts, ["", "", ""], LIMIT)) == [None] * 3
    assert kl_divergence(model, texts, ["", "", ""], nullcontext, LIMIT) == [None] * 3


@pytest.mark.parametrize("kept", [False, True], ids=["anew", "kept"])
def test_a_change_that_changes_nothing_is_no_distance(one_of_each: ChatModel, kept: bool) -> None:
    texts = rendered(one_of_each, sorted(PROMPTS, key=len))
    neurons = neurons_of(one_of_each)
    found = kl_divergence(
        one_of_each,
        texts,
        ["I cannot.", "Of course!", "Yes"],
        lambda: calibrate(one_of_each, neurons, toward="conformity", alpha=0),
        LIMIT,
        caches(one_of_each, texts, kept),
    )
    assert found == [0.0] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_have_no_distance(value: float) -> None:
    before = torch.zeros(3, 5)
    after = before.clone()
    after[1, 2] = value
    for pair in ((before, after), (after, before), (after, after)):
        with pytest.raises(NotFiniteError, match="not finite"):
            distance(*pair)


CASES: list[tuple[dict[str, Any], bool]] = [
    ({"prompt_positions": 1}, False),
    ({"prompt_positions": 1}, True),
    ({"prompt_positions": 3, "generated_tokens": 2}, False),
    ({"prompt_positions": 3, "generated_tokens": 2}, True),
    ({"prompt_positions": 0, "generated_tokens": "all"}, False),
    ({"prompt_positions": "all", "generated_tokens": 1}, False),
]


def written(model: ChatModel, texts: list[str], tokens: int) -> tuple[list[str], list[Tensor], list[list[int]]]:
    """What a generation of each text alone writes, and the logits of each of its steps."""
    answers, logits, ids = [], [], []
    for text in texts:
        inputs = model.encode([text])
        output = model.model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=padding_token(model),
            output_logits=True,
            return_dict_in_generate=True,
        )
        new = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        answers.append(model.tokenizer.decode(new))
        ids.append(new)
        logits.append(torch.cat(output.logits))
    return answers, logits, ids


@pytest.mark.parametrize(("overrides", "kept"), CASES, ids=str)
@pytest.mark.parametrize("name", ["llama", "bloom", "qwen2_moe"])
def test_calibration_meets_a_read_answer_where_it_meets_a_generated_one(
    name: str,
    overrides: dict[str, Any],
    kept: bool,
    make_model: Callable[..., ChatModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(name)
    texts = rendered(model, sorted(PROMPTS, key=len))
    neurons, cache = neurons_of(model), caches(model, texts, kept)
    with calibrate(model, neurons, toward="rejection", alpha=6, **overrides):
        _, logits, ids = written(model, texts, 4)
        answers = [f"answer {number}" for number in range(len(ids))]
        # Bytes that are no text would not come back as the same tokens.
        given = dict(zip(answers, ids, strict=True))
        real = model.tokenizer.__class__.__call__

        def encode(self: Any, text: Any, **options: Any) -> Any:
            return (
                {"input_ids": given[text]} if isinstance(text, str) and text in given else real(self, text, **options)
            )

        monkeypatch.setattr(model.tokenizer.__class__, "__call__", encode)
        reading = read_answers(model, texts, answers, 4, cache())
    for number, expected in enumerate(logits):
        torch.testing.assert_close(reading.logits[number][: len(expected)], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kept", [False, True], ids=["anew", "kept"])
def test_divergence_is_that_of_generated_steps(model: ChatModel, kept: bool) -> None:
    """Of one-token answers: the distribution of the first step of a generation, calibrated and not."""
    texts = rendered(model, sorted(PROMPTS, key=len))
    neurons = neurons_of(model)

    def first_steps() -> list[Tensor]:
        return [steps[0].double().softmax(0) for steps in written(model, texts, 1)[1]]

    base = first_steps()
    with calibrate(model, neurons, toward="conformity", alpha=5, prompt_positions=3):
        moved = first_steps()
    found = kl_divergence(
        model,
        texts,
        ["a", "b", "c"],
        lambda: calibrate(model, neurons, toward="conformity", alpha=5, prompt_positions=3),
        1,
        caches(model, texts, kept),
    )
    for value, p, q in zip(found, base, moved, strict=True):
        assert value is not None
        assert value > 0.01
        assert value == pytest.approx(float((p * (p.log() - q.log())).sum()), rel=1e-3)


@pytest.mark.parametrize("alpha", [1e-4, 0.01, 1.0, 50.0])
def test_distances_grow_with_the_push_and_are_never_negative(model: ChatModel, alpha: float) -> None:
    texts, neurons = rendered(model, PROMPTS), neurons_of(model)

    def at(strength: float) -> list[float | None]:
        return kl_divergence(
            model,
            texts,
            ["I cannot.", "Of course!", "Yes"],
            lambda: calibrate(model, neurons, toward="rejection", alpha=strength, prompt_positions=3),
            4,
        )

    small, large = at(alpha), at(2 * alpha)
    assert all(value is not None and value >= 0 for value in small + large)
    # Smaller ones drown in rounding, larger ones saturate.
    if alpha == 0.01:
        assert sum(value or 0 for value in small) < sum(value or 0 for value in large)
