"""What a defence costs on ordinary prompts, against one full pass for each prompt and its answer."""

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

from safety_neurons.defenses import Defended, Response
from safety_neurons.defenses.defense import BLOCKED, respond_with
from safety_neurons.engines.bench import Bench
from safety_neurons.engines.in_process import InProcess
from safety_neurons.errors import CannotRun
from safety_neurons.evaluate.utility import read_untouched, utility
from safety_neurons.models.chat import ChatModel

PROMPTS = ["Show me a recipe for soup, please.", "Hello", "How do I mend a bicycle?"]
TOKENS = 6


def bench_of(model: ChatModel) -> Bench:
    return Bench(InProcess(model), 8)


@contextlib.contextmanager
def moved(bench: Bench) -> Iterator[Defended]:
    """A defence that changes the weights in place."""
    model = bench.engine.model
    assert model is not None
    weight = model.model.get_parameter("model.layers.1.mlp.down_proj.weight")
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
    changed = bench.under("moved")
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
    bench = bench_of(model)
    untouched = read_untouched(bench, PROMPTS, answer_tokens=TOKENS, divergence_tokens=TOKENS, batch_size=batch_size)
    pairs = list(zip(PROMPTS, untouched.answers, strict=True))
    before = [log_probabilities(model, *pair) for pair in pairs]
    with moved(bench) as defended:
        found = utility(bench, defended, PROMPTS, untouched)
        after = [log_probabilities(model, *pair) for pair in pairs]
    divergences = [float((p.exp() * (p - q)).sum(1).mean()) for (p, _), (q, _) in zip(before, after, strict=True)]

    def naive(read: list[tuple[Tensor, list[int]]]) -> float:
        each = [-float(torch.stack([row[token] for row, token in zip(*one, strict=True)]).mean()) for one in read]
        return math.exp(sum(each) / len(each))

    assert found.divergence is not None
    assert found.divergence.value == pytest.approx(sum(divergences) / 3, rel=1e-3)
    assert sum(divergences) / 3 > 0.01
    assert found.divergence.low is not None
    assert found.divergence.high is not None
    assert min(divergences) - 1e-3 <= found.divergence.low <= found.divergence.high <= max(divergences) + 1e-3
    assert found.perplexity is not None
    assert found.perplexity.value == pytest.approx(naive(after), rel=1e-3)
    assert found.untouched_perplexity is not None
    assert found.untouched_perplexity.value == pytest.approx(naive(before), rel=1e-3)
    assert found.no_divergence is None
    json.dumps(asdict(found), allow_nan=False)


def test_fewer_tokens_are_kept_for_the_divergence_than_are_read(model: ChatModel) -> None:
    bench = bench_of(model)
    untouched = read_untouched(bench, PROMPTS, answer_tokens=TOKENS, divergence_tokens=2)
    assert [len(logits) for logits in untouched.logits] == [2] * 3
    before = [log_probabilities(model, *pair)[0] for pair in zip(PROMPTS, untouched.answers, strict=True)]
    with moved(bench) as defended:
        found = utility(bench, defended, PROMPTS, untouched)
        after = [log_probabilities(model, *pair)[0] for pair in zip(PROMPTS, untouched.answers, strict=True)]
    naive = sum(float((p.exp() * (p - q)).sum(1)[:2].mean()) for p, q in zip(before, after, strict=True)) / 3
    assert found.divergence is not None
    assert found.divergence.value == pytest.approx(naive, rel=1e-3)


def test_a_change_that_changes_nothing_has_no_divergence(model: ChatModel) -> None:
    bench = bench_of(model)
    untouched = read_untouched(bench, PROMPTS)
    same = bench.under("nothing")
    found = utility(bench, Defended(same.engine, functools.partial(respond_with, same)), PROMPTS, untouched)
    assert found.divergence is not None
    assert found.divergence.value == 0.0
    assert found.perplexity == found.untouched_perplexity


ANSWERS = {
    PROMPTS[0]: Response("Boil water, then add salt and leeks."),
    PROMPTS[1]: BLOCKED,
    PROMPTS[2]: Response("Turn it. " * 40, cut_off=True),
}


def test_answers_are_counted_as_the_user_reads_them(model: ChatModel) -> None:
    bench = bench_of(model)
    defended = Defended(bench.engine, lambda prompts: [ANSWERS[prompt.user] for prompt in prompts])
    found = utility(bench, defended, PROMPTS, read_untouched(bench, PROMPTS))
    assert found.words.value == pytest.approx((7 + 8 + 80) / 3)
    assert found.tokens is not None
    # One token a byte.
    assert found.tokens.value == pytest.approx(sum(len(answer.text) for answer in ANSWERS.values()) / 3)
    assert (found.looping.value, found.blocked.value, found.cut_off.value) == (1 / 3, 1 / 3, 1 / 3)
    assert found.divergence is None
    assert found.perplexity is None
    assert found.no_divergence is not None
    assert "texts" in found.no_divergence
    assert found.untouched_perplexity is not None


def test_a_server_has_no_divergence_and_no_tokens(scripted: Callable[..., Any]) -> None:
    bench = Bench(scripted(lambda _: "It is long."), 8)
    with pytest.raises(CannotRun, match="weights"):
        read_untouched(bench, PROMPTS)
    found = utility(bench, Defended(bench.engine, functools.partial(respond_with, bench)), PROMPTS)
    assert found.words.value == 3
    assert found.tokens is None
    assert found.divergence is None
    assert found.no_divergence == "scripted gives text only."


def test_prompts_are_those_that_the_untouched_model_was_read_on(model: ChatModel) -> None:
    bench = bench_of(model)
    untouched = read_untouched(bench, PROMPTS)
    with pytest.raises(ValueError, match="other prompts"):
        utility(bench, Defended(bench.engine, functools.partial(respond_with, bench)), PROMPTS[:2], untouched)
