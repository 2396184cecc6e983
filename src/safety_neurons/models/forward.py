"""One forward pass as generation would do it: positions counted from the first real token, no logits to spare."""

import inspect
from typing import Any

from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel


def forward(
    model: PreTrainedModel, inputs: BatchEncoding | dict[str, Tensor], last_logits: int = 1, use_cache: bool = False
) -> Any:
    """Run left-padded inputs; only the last `last_logits` logits, where the model can spare the others.

    Without position ids, models with absolute positions would count the padding too.
    """
    extra: dict[str, Any] = {}
    known = inspect.signature(model.forward).parameters
    mask = inputs["attention_mask"]
    assert isinstance(mask, Tensor)
    if "position_ids" in known:
        extra["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)
    # Models whose last layers share keys and values run these on the kept positions alone (Gemma 4).
    if "logits_to_keep" in known and not getattr(model.config.get_text_config(), "num_kv_shared_layers", 0):
        extra["logits_to_keep"] = last_logits
    return model(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=use_cache, **extra)
