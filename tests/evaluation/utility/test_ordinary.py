"""What a defense costs on ordinary prompts, against one full pass for each prompt and its answer."""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from safety_neurons.core.errors import CannotRunError
from safety_neurons.engines.engine import InProcess
from safety_neurons.evaluation.contracts import BLOCKED, EvaluationContext, respond_with
from safety_neurons.evaluation.defenses import Defended, Response
from safety_neurons.evaluation.utility.ordinary import read_base_answers, utility
from safety_neurons.models.chat import ChatModel

PROMPTS = ["Show me a recipe for soup, please.", "Hello", "How do I mend a bicycle?"]
TOKENS = 6


def bench_of(model: ChatModel) -> EvaluationContext:
    return EvaluationContext(InProcess(model), 8)


@contextlib.contextmanager
def moved(context: EvaluationContext) -> Iterator[Defended]:
    """A defense that changes the weights in place."""
    model = context.engine.model
    assert model is not None
    weight = model.model.get_parameter("model.layers.1.mlp.down_proj.weight")
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
    changed = context.under("moved")
    yield Defended(changed.engine, functools.partial(respond_with, changed))
    with torch.no_grad():
        weight.copy_(kept)


def log_probabilities(model: ChatModel, prompt: str, answer: str) -> tuple[Tensor, list[int]]:
    """In one pass without a cache: float64 [tokens, vocabulary] before each of the answer's first tokens."""
    before, after = (
        model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (model.render(prompt), answer)
    )
    after = after[:TOKENS]
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([before + after]), use_cache=False).logits[0]
    return logits[len(before) - 1 : len(before) - 1 + len(after)].double().log_softmax(-1), after


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_divergence_and_perplexity_are_those_of_full_passes(model: ChatModel, batch_size: int) -> None:
    context = bench_of(model)
    base = read_base_answers(context, PROMPTS, answer_tokens=TOKENS, kl_tokens=TOKENS, batch_size=batch_size)
    pairs = list(zip(PROMPTS, base.answers, strict=True))
    before = [log_probabilities(model, *pair) for pair in pairs]
    with moved(context) as defended:
        found = utility(context, defended, PROMPTS, base)
        after = [log_probabilities(model, *pair) for pair in pairs]
    divergences = [float((p.exp() * (p - q)).sum(1).mean()) for (p, _), (q, _) in zip(before, after, strict=True)]

    def naive(read: list[tuple[Tensor, list[int]]]) -> float:
        each = [-float(torch.stack([row[token] for row, token in zip(*one, strict=True)]).mean()) for one in read]
        return math.exp(sum(each) / len(each))

    assert found.kl_divergence is not None
    assert found.kl_divergence.value == pytest.approx(sum(divergences) / 3, rel=1e-3)
    assert sum(divergences) / 3 > 0.01
    assert found.kl_divergence.low is not None
    assert found.kl_divergence.high is not None
    assert min(divergences) - 1e-3 <= found.kl_divergence.low <= found.kl_divergence.high <= max(divergences) + 1e-3
    assert found.perplexity is not None
    assert found.perplexity.value == pytest.approx(naive(after), rel=1e-3)
    assert found.base_perplexity is not None
    assert found.base_perplexity.value == pytest.approx(naive(before), rel=1e-3)
    assert found.no_kl_divergence is None
    json.dumps(asdict(found), allow_nan=False)


def test_fewer_tokens_are_kept_for_the_divergence_than_are_read(model: ChatModel) -> None:
    context = bench_of(model)
    base = read_base_answers(context, PROMPTS, answer_tokens=TOKENS, kl_tokens=2)
    assert [len(logits) for logits in base.logits] == [2] * 3
    before = [log_probabilities(model, *pair)[0] for pair in zip(PROMPTS, base.answers, strict=True)]
    with moved(context) as defended:
        found = utility(context, defended, PROMPTS, base)
        after = [log_probabilities(model, *pair)[0] for pair in zip(PROMPTS, base.answers, strict=True)]
    naive = sum(float((p.exp() * (p - q)).sum(1)[:2].mean()) for p, q in zip(before, after, strict=True)) / 3
    assert found.kl_divergence is not None
    assert found.kl_divergence.value == pytest.approx(naive, rel=1e-3)


def test_a_change_that_changes_nothing_has_no_divergence(model: ChatModel) -> None:
    context = bench_of(model)
    base = read_base_answers(context, PROMPTS)
    same = context.under("nothing")
    found = utility(context, Defended(same.engine, functools.partial(respond_with, same)), PROMPTS, base)
    assert found.kl_divergence is not None
    assert found.kl_divergence.value == 0.0
    assert found.perplexity == found.base_perplexity


ANSWERS = {
    PROMPTS[0]: Response("Boil water, then add salt and leeks."),
    PROMPTS[1]: BLOCKED,
    PROMPTS[2]: Response("Turn it. " * 40, cut_off=True),
}


def test_answers_are_counted_as_the_user_reads_them(model: ChatModel) -> None:
    context = bench_of(model)
    defended = Defended(context.engine, lambda prompts: [ANSWERS[prompt.user] for prompt in prompts])
    found = utility(context, defended, PROMPTS, read_base_answers(context, PROMPTS))
    assert found.words.value == pytest.approx((7 + 8 + 80) / 3)
    assert found.tokens is not None
    # One token a byte.
    assert found.tokens.value == pytest.approx(sum(len(answer.text) for answer in ANSWERS.values()) / 3)
    assert (found.looping.value, found.blocked.value, found.cut_off.value) == (1 / 3, 1 / 3, 1 / 3)
    assert found.kl_divergence is None
    assert found.perplexity is None
    assert found.no_kl_divergence is not None
    assert "texts" in found.no_kl_divergence
    assert found.base_perplexity is not None


def test_a_server_has_no_divergence_and_no_tokens(scripted: Callable[..., Any]) -> None:
    context = EvaluationContext(scripted(lambda _: "It is long."), 8)
    with pytest.raises(CannotRunError, match="weights"):
        read_base_answers(context, PROMPTS)
    found = utility(context, Defended(context.engine, functools.partial(respond_with, context)), PROMPTS)
    assert found.words.value == 3
    assert found.tokens is None
    assert found.kl_divergence is None
    assert found.no_kl_divergence == "scripted gives text only."


def test_prompts_are_those_that_the_untouched_model_was_read_on(model: ChatModel) -> None:
    context = bench_of(model)
    base = read_base_answers(context, PROMPTS)
    with pytest.raises(ValueError, match="other prompts"):
        utility(context, Defended(context.engine, functools.partial(respond_with, context)), PROMPTS[:2], base)
