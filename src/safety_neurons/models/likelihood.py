"""Negative log-likelihood of texts, and KL divergence of a changed model from the base model."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import BatchEncoding, DynamicCache

from safety_neurons.core.errors import NotFiniteError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.finite import not_finite
from safety_neurons.models.forward import forward
from safety_neurons.models.shared_prefix import share_prefix
from safety_neurons.models.tokens import padding_token

# Logits of whole prompts are large, so they are computed for this many prompts and tokens at a time.
READ_AT_ONCE = 4
READ_TOKENS = 1024


def nll_by_token(model: ChatModel, inputs: BatchEncoding) -> list[Tensor]:
    """Negative log-likelihood in nats of every token but the first: float32 [tokens - 1] for each encoded text."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    long = ids.shape[1] - 1 > READ_TOKENS
    cache = DynamicCache(config=model.model.config) if long else None
    found = []
    with torch.inference_mode():
        for start in range(0, ids.shape[1] - 1, READ_TOKENS):
            # The last token predicts nothing.
            end = min(start + READ_TOKENS, ids.shape[1] - 1)
            read = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end]}
            logits = forward(model.model, read, end - start, long, cache).logits
            # Text by text: float32 logits of a whole batch would double the memory.
            found.append(
                torch.stack(
                    [
                        each.float().logsumexp(-1) - each.gather(1, tokens[:, None])[:, 0].float()
                        for each, tokens in zip(logits, ids[:, start + 1 : end + 1], strict=True)
                    ]
                )
            )
    nats = torch.cat(found, 1) if found else torch.empty(len(ids), 0, device=ids.device)
    # The first token of a padded text follows padding only.
    return [row[real] for row, real in zip(nats, mask[:, :-1].bool(), strict=True)]


class AnswerLogits(NamedTuple):
    """Logits [answers, tokens, vocabulary] that predict each token, the token ids, and the mask of real tokens."""

    logits: Tensor
    tokens: Tensor
    real: Tensor


def read_answers(
    model: ChatModel, texts: Sequence[str], answers: Sequence[str], limit: int, cache: Any = None
) -> AnswerLogits:
    """Run rendered texts and the first `limit` tokens of an answer to each, as in generation.

    Prompt and answer are two passes over one cache, so that calibration applies at the end of the prompt. `cache` may
    hold prefixes of the texts; it is modified.
    """
    # Tokenized apart: otherwise the answer could share a token with the end of the template, as it never does in
    # generation.
    ids = [model.tokenizer(answer, add_special_tokens=False)["input_ids"][:limit] for answer in answers]
    return read_tokens(model, model.encode(texts), ids, cache)


def read_tokens(
    model: ChatModel, prompts: Mapping[str, Tensor], ids: Sequence[list[int]], cache: Any = None
) -> AnswerLogits:
    """Like `read_answers`, from left-padded `input_ids` and `attention_mask` and the token ids of the answers."""
    longest = max(1, *map(len, ids))
    device = prompts["input_ids"].device
    padding = padding_token(model)
    tokens = torch.tensor([[*one, *[padding] * (longest - len(one))] for one in ids], device=device)
    real = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids], device=device)
    with torch.inference_mode():
        if cache is None:
            prompts, cache = share_prefix(model.model, prompts, new_tokens=longest)
        # Created here, so that `PromptPositions` sees that both passes share one cache.
        cache = DynamicCache(config=model.model.config) if cache is None else cache
        mask = prompts["attention_mask"]
        first = forward(model.model, {"input_ids": prompts["input_ids"], "attention_mask": mask}, 1, True, cache)
        logits = [first.logits[:, -1:]]
        if longest > 1:
            read = {"input_ids": tokens[:, :-1], "attention_mask": torch.cat([mask, real[:, :-1]], 1)}
            logits.append(forward(model.model, read, longest - 1, True, cache).logits[:, -longest + 1 :])
    return AnswerLogits(torch.cat(logits, 1), tokens, real.bool())


def nll(answers: AnswerLogits) -> list[float | None]:
    """Mean negative log-likelihood of each answer in nats per token; None for an answer without tokens."""
    found: list[float | None] = []
    # Answer by answer: float32 logits of a whole batch would double the memory.
    for logits, tokens, real in zip(*answers, strict=True):
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
    """KL(base || changed) in nats per token, over the first `limit` tokens of answers of the base model.

    Args:
        changed: a context manager in which the model is changed.
        cache: returns a new cache with prefixes of the texts, or None.
    """
    base = read_answers(model, texts, answers, limit, cache())
    with changed():
        moved = read_answers(model, texts, answers, limit, cache())
    triples = zip(base.logits, moved.logits, base.real, strict=True)
    return [distance(before[real], after[real]) for before, after, real in triples]


def distance(before: Tensor, after: Tensor) -> float | None:
    """KL(before || after) in nats per token from logits [tokens, vocabulary]; None without tokens.

    Raises:
        NotFiniteError: it is not finite, as the logits are not.
    """
    if not len(before):
        return None
    target, log_probabilities = before.float().log_softmax(-1), after.float().log_softmax(-1)
    each = torch.nn.functional.kl_div(log_probabilities, target, log_target=True, reduction="none").sum(1)
    found = float(each.mean())
    if not math.isfinite(found):
        raise NotFiniteError(not_finite("The model", after.dtype))
    # Rounding can make a sum of zeros slightly negative.
    return max(0.0, found)


def perplexity(nll: float | None) -> float | None:
    """exp(nll) of nats per token; None if there is no nll or it overflows."""
    return None if nll is None or nll > 700 else math.exp(nll)
