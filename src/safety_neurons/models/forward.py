"""One forward pass as generation would do it: positions counted from the first real token, no logits to spare."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel


def forward(
    model: PreTrainedModel,
    inputs: BatchEncoding | dict[str, Tensor],
    last_logits: int = 1,
    use_cache: bool = False,
    cache: Any = None,
) -> Any:
    """Run left-padded inputs; only the last `last_logits` logits, where the model can spare the others.

    With a cache of what came before, the input ids are what follows, and the attention mask is for both. Without
    position ids, models with absolute positions would count the padding too.
    """
    extra: dict[str, Any] = {}
    known = inspect.signature(model.forward).parameters
    mask = inputs["attention_mask"]
    assert isinstance(mask, Tensor)
    if "position_ids" in known:
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)
        extra["position_ids"] = positions[:, positions.shape[1] - inputs["input_ids"].shape[1] :]
    if cache is not None:
        extra[cache_argument(model)] = cache
    # Models whose last layers share keys and values run these on the kept positions alone (Gemma 4).
    if "logits_to_keep" in known and not getattr(model.config.get_text_config(), "num_kv_shared_layers", 0):
        extra["logits_to_keep"] = last_logits
    with _contiguous_input(model.get_output_embeddings()):
        return model(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=use_cache, **extra)


@contextlib.contextmanager
def _contiguous_input(head: nn.Module | None) -> Iterator[None]:
    """Give the head its input as one block of memory while the context is open.

    torch multiplies a slice of a batch (the last positions) with a frozen weight prompt by prompt, and copies the
    weight for each: seconds instead of milliseconds.
    """
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _module, args: tuple(value.contiguous() for value in args))
    try:
        yield
    finally:
        handle.remove()


def cache_argument(model: PreTrainedModel) -> str:
    """What `forward` and `generate` call the cache of keys and values: transformers 5.24 gave it another name."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cache_of(output: Any) -> Any:
    """The cache of keys and values in a model's output; None where it keeps none."""
    # Asked for by its old name, the new transformers complain.
    return output["cache"] if "cache" in output else output.get("past_key_values")
