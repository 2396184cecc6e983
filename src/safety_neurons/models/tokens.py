"""The token ids that generation and batches need besides the text: padding, and the ends of the model's turn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import BatchEncoding

if TYPE_CHECKING:
    from safety_neurons.models.chat import ChatModel


def left_padded(rows: Sequence[Sequence[int]], padding: int) -> BatchEncoding:
    """Token ids and attention mask [rows, tokens] of token sequences.

    Only the mask tells padding from tokens: the padding token may also be a token of the texts.
    """
    longest = max(map(len, rows), default=0)
    return BatchEncoding(
        {
            "input_ids": torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows], dtype=torch.long),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]).long(),
        }
    )


def padding_token(model: "ChatModel") -> int:
    """The tokenizer's padding token, or else another token that the model has, by preference an end of sequence."""
    tokenizer = model.tokenizer
    candidates = [tokenizer.pad_token_id, *end_tokens(model), tokenizer.bos_token_id, tokenizer.unk_token_id, 0]
    return _existing(model, candidates)[0]


def end_tokens(model: "ChatModel") -> list[int]:
    """The tokens that end the model's turn, from all that names one: often one of these lacks some of them.

    Llama 3 was published with a generation config that did not name the token its chat template ends a turn with.
    """
    model_config = model.model.config.get_text_config()
    named = [model.model.generation_config, model_config]
    listed = [getattr(config, "eos_token_id", None) for config in named]
    flat = [token for each in listed for token in (each if isinstance(each, list | tuple) else [each])]
    return _existing(model, [*flat, model.tokenizer.eos_token_id, model.turn_end])


def answer_end(model: "ChatModel") -> list[int]:
    """The token that a complete answer ends with, in training; empty for a model without one."""
    return _existing(model, [model.turn_end, model.tokenizer.eos_token_id, *end_tokens(model)])[:1]


def _existing(model: "ChatModel", candidates: Sequence[Any]) -> list[int]:
    """Those candidates that are ids of the model's embeddings: files also name None, and ids past the last row."""
    rows = int(model.model.get_input_embeddings().weight.shape[0])
    found = [each for each in candidates if type(each) is int and 0 <= each < rows]
    return list(dict.fromkeys(found))
