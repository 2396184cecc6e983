"""What all prompts of a batch begin with (system prompt, template) is read once, and its keys and values repeated."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from safety_neurons.models.forward import cache_of, followers, forward
from safety_neurons.models.neurons.hook_points import device_of

# Below this number of tokens, a pass of their own takes longer than it saves.
WORTHWHILE = 8
# Lengths of the dummy prompts that show whether a model's prompts can share a prefix, and of that prefix.
DUMMY_LENGTHS, _DUMMY_PREFIX = (9, 14), 6


class Prompts(NamedTuple):
    """Token ids and attention mask [prompts, tokens] of a batch, and the cache of its first tokens (None: nothing).

    After a shared prefix, padding stands between it and the rest of each prompt.
    """

    inputs: dict[str, Tensor]
    cache: Any

    @property
    def unread(self) -> Tensor:
        """The attention mask of the tokens that are not in the cache."""
        read = 0 if self.cache is None else int(self.cache.get_seq_length())
        return self.inputs["attention_mask"][:, read:]


def share_prefix(model: PreTrainedModel, inputs: Mapping[str, Tensor], *, own: int = 1, new_tokens: int = 0) -> Prompts:
    """Read the longest common prefix of left-padded prompts once, for all of them.

    Hooks that follow positions (`forward.follow_positions`) see nothing of the prefix, so it ends before the tokens at
    the prompt's end that matter to them.

    Args:
        own: number of tokens at the end of each prompt that must not be part of the prefix.
        new_tokens: number of tokens that will be generated after the prompts.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    whole = Prompts({"input_ids": ids, "attention_mask": mask}, None)
    reaches = [where.reach for where in followers(model)]
    if None in reaches or len(ids) < 2:
        return whole
    lengths = mask.sum(1)
    own = max([own, *(reach for reach in reaches if reach is not None)])
    length = min(common_prefix(ids, lengths), int(lengths.min()) - own)
    if length < WORTHWHILE or not can_share(model, ids.shape[1] + new_tokens):
        return whole
    return _read(model, ids, mask, length)


def read_ahead(model: PreTrainedModel, inputs: Mapping[str, Tensor], own: int) -> Prompts:
    """Read left-padded prompts without a graph, all but their last `own` tokens; what they share is read once."""
    prompts = share_prefix(model, inputs, own=own)
    ids, mask = prompts.inputs["input_ids"], prompts.inputs["attention_mask"]
    end = ids.shape[1] - own
    if end <= ids.shape[1] - prompts.unread.shape[1] or not can_share(model, ids.shape[1]):
        return prompts
    first = {"input_ids": ids[:, :end], "attention_mask": mask[:, :end]}
    with torch.no_grad(), unseen(model):
        return Prompts(prompts.inputs, cache_of(forward(model.base_model, first, use_cache=True, cache=prompts.cache)))


def common_prefix(ids: Tensor, lengths: Tensor) -> int:
    """Length of the longest common prefix of left-padded sequences."""
    starts = ids.shape[1] - lengths
    columns = torch.arange(int(lengths.min()), device=ids.device)
    aligned = ids.gather(1, starts[:, None] + columns)
    same = (aligned == aligned[:1]).all(0)
    return int(same.long().cumprod(0).sum())


def _read(model: PreTrainedModel, ids: Tensor, mask: Tensor, length: int) -> Prompts:
    start = ids.shape[1] - int(mask[0].sum())
    prefix = ids[:1, start : start + length]
    read = {"input_ids": prefix, "attention_mask": torch.ones_like(prefix)}
    with torch.no_grad(), unseen(model):
        cache = cache_of(forward(model.base_model, read, use_cache=True))
    cache.batch_repeat_interleave(len(ids))
    # A padded prompt has as many tokens of the prefix in the columns that remain as it has padding.
    rest, real = ids[:, length:], mask[:, : ids.shape[1] - length]
    shared = prefix.expand(len(ids), -1)
    joined = {
        "input_ids": torch.cat([shared, torch.where(real.bool(), rest, ids[:, -1:])], 1),
        "attention_mask": torch.cat([torch.ones_like(shared), real], 1),
    }
    return Prompts(joined, cache)


@contextlib.contextmanager
def unseen(model: PreTrainedModel) -> Iterator[None]:
    """Hooks that follow positions take the tokens of all passes for padding while the context is open."""
    for where in followers(model):
        where.paused += 1
    try:
        yield
    finally:
        for where in followers(model):
            where.paused -= 1


# Whether the prompts of a model can share a prefix, and the length of its shortest attention window (None: none).
_known: WeakKeyDictionary[PreTrainedModel, tuple[bool, int | None]] = WeakKeyDictionary()


def can_share(model: PreTrainedModel, tokens: int) -> bool:
    """Whether prompts of up to this length can share a prefix: tried once per model, on dummy tokens.

    They cannot if the model keeps something else than keys and values, or counts positions of its own.
    """
    if model not in _known:
        _known[model] = _try(model)
    possible, window = _known[model]
    return possible and (window is None or tokens <= window)


def _try(model: PreTrainedModel) -> tuple[bool, int | None]:
    ids, mask = dummy_prompts(model)
    with torch.no_grad(), unseen(model):
        cache = cache_of(forward(model.base_model, {"input_ids": ids, "attention_mask": mask}, use_cache=True))
        if type(cache) is not DynamicCache or {*map(type, cache.layers)} - {DynamicLayer, DynamicSlidingWindowLayer}:
            return False, None
        whole = Prompts({"input_ids": ids, "attention_mask": mask}, None)
        expected, found = (_last_logits(model, each) for each in (whole, _read(model, ids, mask, _DUMMY_PREFIX)))
    windows = [layer.sliding_window for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return close(found, expected), min(windows, default=None)


def dummy_prompts(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Left-padded token ids and attention mask [2, tokens] of two prompts, the first a prefix of the second."""
    embeddings = model.get_input_embeddings()
    longest, device = max(DUMMY_LENGTHS), device_of(embeddings)
    tokens = torch.arange(longest, device=device) * 7 % int(embeddings.weight.shape[0])
    missing = [longest - length for length in DUMMY_LENGTHS]
    ids = torch.stack([tokens.roll(each) for each in missing])
    mask = torch.stack([(torch.arange(longest, device=device) >= each).long() for each in missing])
    return ids, mask


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether logits [..., vocabulary] differ by rounding alone: a position off by one moves them far more."""
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    distance = (found - expected).float().norm(dim=-1)
    return bool((distance <= tolerance * expected.float().norm(dim=-1)).all())


def _last_logits(model: PreTrainedModel, prompts: Prompts) -> Tensor:
    """The logits [prompts, vocabulary] after the last token."""
    logits: Tensor = forward(model, prompts.inputs, cache=prompts.cache).logits[:, -1]
    return logits
