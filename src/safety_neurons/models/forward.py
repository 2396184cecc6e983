"""Where the tokens of a forward pass stand, counted from the prompt's end.

-1 is the last token of the prompt, -2 the one before; 0 is the first generated token, and so on across cached
decoding steps. A mask made from the current input's length would do nothing once the cache is on.


One forward pass as generation would do it: positions counted from the first real token, no logits to spare."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel

from safety_neurons.core.errors import SafetyNeuronsError


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


PADDING = torch.iinfo(torch.long).min


class PromptPositions:
    """Follows a model's forward passes; `offsets` [batch, tokens] belongs to the pass that is running.

    A pass starts a new prompt unless it continues the last one: with the same key-value cache, or, without a
    cache, with an input that extends the last input. `generated` is how many tokens came between the prompt and a
    pass that continues from a cache, and None for a pass that reads the prompt: known without a look at the tensors,
    for which a GPU would have to be waited for. `at_prompt` is called when such a pass begins.
    """

    def __init__(self, at_prompt: Callable[[], None] = lambda: None) -> None:
        self.at_prompt = at_prompt
        self.offsets: Tensor = torch.empty(0, 0, dtype=torch.long)
        self.generated: int | None = None
        self._prompt: Tensor = torch.empty(0, 0, dtype=torch.long)
        self._cached = 0
        self._cache: Any = None
        self._inputs: Tensor | None = None

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs: Tensor | None = kwargs.get("input_ids", args[0] if args else None)
        shape = inputs.shape if inputs is not None else kwargs["inputs_embeds"].shape[:2]
        device = inputs.device if inputs is not None else kwargs["inputs_embeds"].device
        # transformers 5.24 calls it "cache".
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        cached = int(cache.get_seq_length()) if cache is not None else 0
        if cached and cache is self._cache:
            self.generated = cached - self._cached - self._prompt.shape[1]
            new = torch.arange(self.generated, self.generated + shape[1], device=device)
            self.offsets = new.expand(shape[0], -1)
            return
        self.generated = None
        self.at_prompt()
        if cache is None and self._extends(inputs):
            new = torch.arange(shape[1] - self._prompt.shape[1], device=device)
            self.offsets = torch.cat([self._prompt, new.expand(shape[0], -1)], 1)
            return
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            if mask.shape[1] > shape[1] and not cached:
                raise SafetyNeuronsError(
                    f"A pass of {type(module).__name__} continues from tokens that cannot be followed: its attention "
                    f"mask is for {mask.shape[1]} tokens, its input has {shape[1]}, and no cache is known."
                )
            real = mask[:, -shape[1] :].long()
        else:
            real = torch.ones(shape, dtype=torch.long, device=device)
        from_end = real.flip(1).cumsum(1).flip(1)
        self.offsets = torch.where(real.bool(), -from_end, PADDING)
        self._prompt, self._cache, self._cached, self._inputs = self.offsets, cache, cached, inputs

    def _extends(self, inputs: Tensor | None) -> bool:
        last = self._inputs
        return (
            inputs is not None
            and last is not None
            and self._cache is None
            and inputs.shape[0] == last.shape[0]
            and inputs.shape[1] > last.shape[1]
            and torch.equal(inputs[:, : last.shape[1]], last)
        )


@contextlib.contextmanager
def follow_positions(model: PreTrainedModel, at_prompt: Callable[[], None] = lambda: None) -> Iterator[PromptPositions]:
    """Follow `model` while the context is open; `at_prompt` is called when a pass begins that reads a prompt."""
    positions = PromptPositions(at_prompt)
    # The body too, which may be run without the head; where both run, the second time changes nothing.
    handles = [
        module.register_forward_pre_hook(positions.enter, with_kwargs=True) for module in {model, model.base_model}
    ]
    try:
        yield positions
    finally:
        for handle in handles:
            handle.remove()
