"""A single forward pass as in generation, and the positions of its tokens relative to the end of the prompt."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

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
    """Run left-padded inputs, with the last `last_logits` logits only if the model supports it.

    `inputs` are token ids, their attention mask and, if it does not follow from the mask, their position_ids.
    With a `cache`, the attention mask covers the cached tokens and those to run; the input ids may cover both.
    """
    extra: dict[str, Any] = {}
    accepted = inspect.signature(model.forward).parameters
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert isinstance(ids, Tensor)
    assert isinstance(mask, Tensor)
    if cache is not None:
        ids = ids[:, int(cache.get_seq_length()) - mask.shape[1] :]
        extra[cache_argument(model)] = cache
    if "position_ids" in inputs:
        extra["position_ids"] = inputs["position_ids"]
    elif "position_ids" in accepted:
        # Otherwise models with absolute positions would count the padding.
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)
        extra["position_ids"] = positions[:, positions.shape[1] - ids.shape[1] :]
    # Models whose last layers share keys and values (Gemma 4) would run those on the kept positions only.
    if "logits_to_keep" in accepted and not getattr(model.config.get_text_config(), "num_kv_shared_layers", 0):
        extra["logits_to_keep"] = last_logits
    with _contiguous_input(model.get_output_embeddings()):
        return model(input_ids=ids, attention_mask=mask, use_cache=use_cache or cache is not None, **extra)


@contextlib.contextmanager
def _contiguous_input(head: nn.Module | None) -> Iterator[None]:
    """Make the input of the head contiguous while the context is open.

    torch multiplies a slice of a batch (the last positions) with a frozen weight prompt by prompt, copying the weight
    each time: seconds instead of milliseconds.
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
    """The name of the key-value cache argument, which transformers 5.24 renamed."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cache_of(output: Any) -> Any:
    """The key-value cache in a model's output, or None."""
    # The new transformers warns about the old name.
    return output["cache"] if "cache" in output else output.get("past_key_values")


PADDING = torch.iinfo(torch.long).min


class PromptPositions:
    """Follows a model's forward passes; `offsets` [batch, tokens] holds the positions of the current pass.

    -1 is the last token of the prompt, -2 the one before; 0 is the first generated token, and so on across cached
    decoding steps; `PADDING` marks padding. A pass starts a new prompt unless it continues the last one: with the same
    key-value cache, or, without a cache, with an input that extends the last input. `generated` is the number of
    tokens between the prompt and a pass that continues from a cache, and None for a pass that reads the prompt; it is
    known without reading tensors, so a GPU need not synchronize. `at_prompt` is called when such a pass begins.

    `reach` is the number of tokens at the end of the prompt that matter to those who follow; None means all. While
    `paused` is above 0, all tokens count as padding: they are read ahead of the prompt that they belong to.
    """

    def __init__(self, at_prompt: Callable[[], None] = lambda: None, reach: int | None = None) -> None:
        self.at_prompt, self.reach, self.paused = at_prompt, reach, 0
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
        if self.paused:
            self.offsets, self.generated = torch.full(shape, PADDING, device=device), None
            return
        # transformers 5.24 calls it "cache".
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        cached = int(cache.get_seq_length()) if cache is not None else 0
        if cached and cache is self._cache:
            if cached == self._cached and inputs is self._inputs:
                # The base model's part of the pass that the model with the head began.
                return
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
                    f"A pass of {type(module).__name__} continues from unknown tokens: its attention mask covers "
                    f"{mask.shape[1]} tokens, its input has {shape[1]}, and there is no known cache."
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


# Those who follow a model, in the order in which they began.
_followers: WeakKeyDictionary[nn.Module, list[PromptPositions]] = WeakKeyDictionary()


def followers(model: PreTrainedModel) -> Sequence[PromptPositions]:
    """The positions of all who follow the model at present."""
    return tuple(_followers.get(model.base_model, ()))


@contextlib.contextmanager
def follow_positions(
    model: PreTrainedModel, at_prompt: Callable[[], None] = lambda: None, reach: int | None = None
) -> Iterator[PromptPositions]:
    """Follow `model` while the context is open; see `PromptPositions` for `at_prompt` and `reach`."""
    positions = PromptPositions(at_prompt, reach)
    # The base model can run without the head; when both run, the second call changes nothing.
    handles = [
        module.register_forward_pre_hook(positions.enter, with_kwargs=True) for module in {model, model.base_model}
    ]
    active = _followers.setdefault(model.base_model, [])
    active.append(positions)
    try:
        yield positions
    finally:
        active.remove(positions)
        for handle in handles:
            handle.remove()
