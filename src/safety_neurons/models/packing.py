"""Batches packed into one row without padding, in which the sequences' common prefix stands once."""

import inspect
from collections.abc import Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from safety_neurons.models.forward import forward
from safety_neurons.models.shared_prefix import DUMMY_LENGTHS, can_share, close, common_prefix, dummy_prompts

# Rows are filled up to a multiple of this: for each new length, kernels are built and kept, and memory falls to pieces.
MULTIPLE = 32


class Packed(NamedTuple):
    """One row [1, packed tokens] for `forward`, and each token's place in it: [sequences, tokens], 0 for padding."""

    inputs: dict[str, Tensor]
    places: Tensor


def pack(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Packed:
    """Pack left-padded sequences, or leave them as they are where the model cannot run them packed, or not faster.

    Attention is masked so that each sequence sees the prefix and itself; positions count from the sequence's start.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    count, tokens = ids.shape
    padded = Packed(
        {"input_ids": ids, "attention_mask": mask}, torch.arange(count * tokens, device=ids.device).view(count, tokens)
    )
    if count == 1:
        return padded
    shared = common_prefix(ids, mask.sum(1))
    length = shared + int(mask.sum()) - count * shared
    if not _attention_is_cheap(model, length, count, tokens) or not can_pack(model, length):
        return padded
    return _pack(model, ids, mask, shared)


def _attention_is_cheap(model: PreTrainedModel, length: int, count: int, tokens: int) -> bool:
    """Whether one row of this length costs less than `count` rows of `tokens` tokens.

    Weights cost in proportion to the tokens, and attention in proportion to their square.
    """
    width = 6 * int(model.get_input_embeddings().weight.shape[1])
    return length * (width + length) <= count * tokens * (width + tokens)


def _pack(model: PreTrainedModel, ids: Tensor, mask: Tensor, shared: int) -> Packed:
    count, tokens = ids.shape
    positions = mask.long().cumsum(1) - 1
    own = mask.bool() & (positions >= shared)
    places = torch.where(own, own.flatten().long().cumsum(0).view(count, tokens) - 1 + shared, positions.clamp_min(0))
    # The first sequence lends its prefix.
    first = mask[0].bool() & ~own[0]
    filling = ids.new_zeros(-(shared + int(own.sum())) % MULTIPLE)
    sequence = torch.cat(
        [
            ids.new_zeros(shared),
            torch.arange(1, count + 1, device=ids.device).repeat_interleave(own.sum(1)),
            filling - 1,
        ]
    )
    visible = (sequence == sequence[:, None]) | (sequence == 0)
    kind = model.get_input_embeddings().weight.dtype
    hidden = torch.zeros(visible.shape, dtype=kind, device=ids.device)
    hidden.masked_fill_(~visible.tril(), torch.finfo(kind).min)
    return Packed(
        {
            "input_ids": torch.cat([ids[0][first], ids[own], filling])[None],
            "position_ids": torch.cat([positions[0][first], positions[own], filling])[None],
            "attention_mask": hidden[None, None],
        },
        places,
    )


# Whether a model runs packed sequences as it runs them apart.
_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def can_pack(model: PreTrainedModel, tokens: int) -> bool:
    """Whether the model runs packed rows of this length: tried once per model, on dummy tokens."""
    if not can_share(model, tokens) or model.config._attn_implementation not in ("sdpa", "eager"):
        return False
    if model not in _known:
        _known[model] = "position_ids" in inspect.signature(model.forward).parameters and _try(model)
    return _known[model]


def _try(model: PreTrainedModel) -> bool:
    ids, mask = dummy_prompts(model)
    with torch.no_grad():
        expected = forward(model, {"input_ids": ids, "attention_mask": mask}, last_logits=0).logits
        packed = _pack(model, ids, mask, min(DUMMY_LENGTHS) - 1)
        try:
            found = forward(model, packed.inputs, last_logits=0).logits.flatten(0, 1)[packed.places]
        except (ValueError, RuntimeError):
            # Models with masks of their own reject ours.
            return False
    return close(found[mask.bool()], expected[mask.bool()])
