"""How long a prompt and its answer may be."""

from collections.abc import Sequence

from transformers import PretrainedConfig


def context_length(config: PretrainedConfig) -> int | None:
    """The number of tokens that a model was made for; None if its config names none.

    Models with learned positions fail beyond it, those with rotary positions write worse and worse.
    """
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if not isinstance(length, int) or length < 1:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    original, factor = (rope.get(name) for name in ("original_max_position_embeddings", "factor"))
    # Some configs keep the length before it was extended.
    return length if original is None or factor is None else max(length, int(original * factor))


def too_long(lengths: Sequence[int], new_tokens: int, context: int | None) -> dict[int, str]:
    """By index, why a prompt of this many tokens with an answer of `new_tokens` does not fit the context, if known."""
    if context is None:
        return {}
    answer = f" and an answer of {new_tokens:,} do" if new_tokens else " do"
    return {
        index: f"its {length:,} tokens{answer} not fit the context of {context:,} tokens"
        for index, length in enumerate(lengths)
        if length + new_tokens > context
    }
