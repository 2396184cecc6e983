"""SafeDecoding (Xu et al. 2024, arXiv 2402.08983): a model and its safer expert choose the first tokens together.

The tokens that both find likely are weighed by how much likelier the expert finds them. Once these few are written, the
model goes on alone: whether it refuses is decided by then.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import cache_argument
from safety_neurons.models.generate import (
    Completion,
    Sampling,
    completions,
    decoding,
    drawing,
    end_tokens,
    padding_token,
)

# What a token of the sample space counts at least when it is drawn, as in the authors' code.
LEAST = 1e-8


@dataclass(frozen=True)
class Steering:
    """How the first tokens are chosen; the defaults are the published ones.

    `alpha` is the weight of the expert's difference, `first` how many tokens are chosen with it (the paper's m), and
    `common` the least size of the sample space (the paper's c).
    """

    alpha: float = 3.0
    first: int = 2
    common: int = 5

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.first < 0 or self.common < 1:
            raise SafetyNeuronsError(
                "SafeDecoding takes an alpha from 0 on, a whole number of tokens from 0 on and one of common tokens "
                f"from 1 on, not {self.alpha}, {self.first} and {self.common}."
            )


def steered(base: Tensor, expert: Tensor, steering: Steering) -> Tensor:
    """p + alpha * (p' - p) in the sample space, -inf outside it: float32 [batch, vocabulary], from logits of p and p'.

    The sample space holds the tokens that are among the k likeliest of both, with the least k that finds enough.
    """
    worse = torch.maximum(_ranks(base), _ranks(expert))
    last = worse.sort(-1).values[:, min(steering.common, worse.shape[1]) - 1, None]
    before, after = (logits.float().softmax(-1) for logits in (base, expert))
    return torch.where(worse <= last, before + steering.alpha * (after - before), -torch.inf)


def _ranks(logits: Tensor) -> Tensor:
    """The place of each token among the likeliest, from 0 on; of equally likely ones the first goes before."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(logits.shape[-1], device=logits.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def complete_safely(
    model: ChatModel,
    expert: Callable[[], AbstractContextManager[Any]],
    texts: Sequence[str],
    max_new_tokens: int,
    steering: Steering,
    sampling: Sampling | None = None,
) -> list[Completion]:
    """The answers to one batch of rendered texts.

    The model is its expert while the context that `expert()` gives is open; each of the two has a cache of its own.
    What the model's generation settings do to its scores is done to both.
    """
    inputs = model.encode(texts)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    start, ends = ids.shape[1], torch.tensor(end_tokens(model), device=ids.device)
    own, experts = (DynamicCache(config=model.model.config) for _ in range(2))
    with torch.inference_mode(), drawing(sampling, texts):
        for _ in range(min(steering.first, max_new_tokens)):
            scores = _next_scores(model, ids, mask, own)
            with expert():
                chosen = _chosen(steered(scores, _next_scores(model, ids, mask, experts), steering), sampling)
            ids, mask = torch.cat([ids, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)
        left = max_new_tokens - (ids.shape[1] - start)
        ended = torch.isin(ids[:, start:], ends).any(1)
        if left and not ended.all():
            ids = _generate(model, ids, mask, own, max_new_tokens=left, **decoding(sampling)).sequences
    new = ids[:, start:]
    # Whoever ended early went on with the others.
    is_end = torch.isin(new, ends).int()
    return completions(model, new.masked_fill(is_end.cumsum(1) > is_end, padding_token(model)))


def _next_scores(model: ChatModel, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """The scores of the next token [batch, vocabulary]."""
    output = _generate(model, ids, mask, cache, max_new_tokens=1, output_scores=True, **decoding(None))
    scores: Tensor = output.scores[0]
    return scores


def _generate(model: ChatModel, ids: Tensor, mask: Tensor, cache: Any, **options: Any) -> Any:
    return model.model.generate(
        input_ids=ids,
        attention_mask=mask,
        **{cache_argument(model.model): cache},
        pad_token_id=padding_token(model),
        return_dict_in_generate=True,
        **options,
    )


def _chosen(weights: Tensor, sampling: Sampling | None) -> Tensor:
    """The heaviest token of each row, or a drawn one: [batch, 1]."""
    if sampling is None:
        return weights.argmax(-1, keepdim=True)
    logarithms = torch.where(weights.isinf(), weights, weights.clamp_min(LEAST).log())
    return torch.multinomial((logarithms / sampling.temperature).softmax(-1), 1)
