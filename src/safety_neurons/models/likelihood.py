"""Texts and answers read by a model: how surprising it finds them, and how far a changed model is from the base
one."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import BatchEncoding, DynamicCache

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import padding_token

# Logits of whole prompts are large: so many prompts at once, and so many of their tokens.
READ_AT_ONCE = 4
READ_TOKENS = 1024


def surprise_by_token(model: ChatModel, inputs: BatchEncoding) -> list[Tensor]:
    """Nats of each token but the first, given those before it: float32 [tokens - 1] for each encoded text."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    long = ids.shape[1] - 1 > READ_TOKENS
    cache = DynamicCache(config=model.model.config) if long else None
    found = []
    with torch.inference_mode():
        for start in range(0, ids.shape[1] - 1, READ_TOKENS):
            # The last token is read by no one.
            end = min(start + READ_TOKENS, ids.shape[1] - 1)
            read = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end]}
            logits = forward(model.model, read, end - start, long, cache).logits
            # Text by text: in float32 the logits of a batch would take twice the memory.
            found.append(
                torch.stack(
                    [
                        each.float().logsumexp(-1) - each.gather(1, tokens[:, None])[:, 0].float()
                        for each, tokens in zip(logits, ids[:, start + 1 : end + 1], strict=True)
                    ]
                )
            )
    nats = torch.cat(found, 1) if found else torch.empty(len(ids), 0, device=ids.device)
    # A text's own first token follows padding, if anything.
    return [row[known] for row, known in zip(nats, mask[:, :-1].bool(), strict=True)]


class Reading(NamedTuple):
    """What a model says of given answers: logits [answers, tokens, vocabulary] before each token, the tokens, and
    which of them are there [answers, tokens]."""

    logits: Tensor
    tokens: Tensor
    real: Tensor


def read_answers(
    model: ChatModel, texts: Sequence[str], answers: Sequence[str], limit: int, cache: Any = None
) -> Reading:
    """Run rendered texts, then the first `limit` tokens of an answer to each, as if the model had just written them.

    The prompt and the answer are two passes over one cache, as in generation, so that calibration meets the prompt's
    end where it is. `cache` may hold the texts' beginnings already; it is written to.
    """
    # Rendered again with its text, the answer could share a token with the template's end; generation never does.
    ids = [model.tokenizer(answer, add_special_tokens=False)["input_ids"][:limit] for answer in answers]
    return read_tokens(model, model.encode(texts), ids, cache)


def read_tokens(
    model: ChatModel, prompts: Mapping[str, Tensor], ids: Sequence[list[int]], cache: Any = None
) -> Reading:
    """Run prompts, `input_ids` and `attention_mask` padded on the left, then the tokens after each; see above."""
    longest = max(1, *map(len, ids))
    device = prompts["input_ids"].device
    padding = padding_token(model)
    tokens = torch.tensor([[*one, *[padding] * (longest - len(one))] for one in ids], device=device)
    real = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids], device=device)
    with torch.inference_mode():
        # Not left to the model: whoever follows the positions must see that both passes have one cache.
        cache = DynamicCache(config=model.model.config) if cache is None else cache
        known = int(cache.get_seq_length())
        mask = prompts["attention_mask"]
        first = forward(
            model.model, {"input_ids": prompts["input_ids"][:, known:], "attention_mask": mask}, 1, True, cache
        )
        logits = [first.logits[:, -1:]]
        if longest > 1:
            read = {"input_ids": tokens[:, :-1], "attention_mask": torch.cat([mask, real[:, :-1]], 1)}
            logits.append(forward(model.model, read, longest - 1, True, cache).logits[:, -longest + 1 :])
    return Reading(torch.cat(logits, 1), tokens, real.bool())


def nll(reading: Reading) -> list[float | None]:
    """Nats per token of each answer, the logarithm of its perplexity; None for an answer without tokens."""
    found: list[float | None] = []
    # Answer by answer: in float32 the logits of a batch would take twice the memory.
    for logits, tokens, real in zip(*reading, strict=True):
        chosen = logits[real].float().log_softmax(-1).gather(1, tokens[real][:, None])
        found.append(-float(chosen.mean()) if len(chosen) else None)
    return found


def kl_divergence(
    model: ChatModel,
    texts: Sequence[str],
    answers: Sequence[str],
    changed: Callable[[], AbstractContextManager[Any]],
    limit: int,
    cache: Callable[[], Any] = lambda: None,
) -> list[float | None]:
    """KL(base || changed) in nats per token, over the first tokens of the base model's own answers.

    Args:
        changed: opens the context in which the model is changed.
        cache: a new cache of the texts' beginnings at each call, where they are kept.
    """
    base = read_answers(model, texts, answers, limit, cache())
    with changed():
        moved = read_answers(model, texts, answers, limit, cache())
    found: list[float | None] = []
    for before, after, real in zip(base.logits, moved.logits, base.real, strict=True):
        found.append(distance(before[real], after[real]))
    return found


def distance(before: Tensor, after: Tensor) -> float | None:
    """KL(before || after) in nats per token between logits [tokens, vocabulary]; None where there are no tokens."""
    target, given = before.float().log_softmax(-1), after.float().log_softmax(-1)
    each = torch.nn.functional.kl_div(given, target, log_target=True, reduction="none").sum(1)
    # Rounding can make a sum of zeros slightly negative.
    return max(0.0, float(each.mean())) if len(each) else None


def perplexity(nll: float | None) -> float | None:
    """e to a mean surprise in nats per token; None where there is none, or where it is beyond all numbers."""
    return None if nll is None or nll > 700 else math.exp(nll)
