"""Answers in batches, in a fixed order of batches, so that a killed run that goes on gives the same text."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import cache_argument

T = TypeVar("T")

BATCH_SIZE = 32


def batches_by_length(texts: Sequence[str], batch_size: int) -> list[list[int]]:
    """Indices in batches of texts of similar length. A function of all texts: what is done already does not change
    who shares a batch with whom, and so not the rounding of the results."""
    order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), texts[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def halve_when_full(work: Callable[[list[int]], T], batch: list[int]) -> list[T]:
    """Run `work` on the batch; where memory runs out, on its halves."""
    try:
        return [work(batch)]
    except (MemoryError, RuntimeError) as error:
        # PyTorch reports the CPU's and other devices' full memory as a plain RuntimeError.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not should_reduce_batch_size(error):
            raise
        if len(batch) == 1:
            raise SafetyNeuronsError(
                "Memory ran out on a single prompt. Use a smaller model, shorter answers, --dtype bfloat16, "
                "--quantize 4bit, or --device-map auto."
            ) from error
    clear_device_cache()
    middle = len(batch) // 2
    return halve_when_full(work, batch[:middle]) + halve_when_full(work, batch[middle:])


def in_batches(texts: Sequence[str], batch_size: int, read: Callable[[list[int]], list[T]]) -> list[T]:
    """What `read` gives for the indices of each batch, for every text in the order of the texts."""
    found: dict[int, T] = {}
    for batch in batches_by_length(texts, batch_size):
        values = [value for part in halve_when_full(read, batch) for value in part]
        found.update(zip(batch, values, strict=True))
    return [found[index] for index in range(len(texts))]


class Completion(NamedTuple):
    """What the model wrote; `cut_off` where it ran into the limit before it ended its turn."""

    text: str
    cut_off: bool


class Sampling(NamedTuple):
    """Answers that are drawn instead of greedy; the same seed draws the same ones for the same batch."""

    temperature: float
    seed: int


def generate(
    model: ChatModel,
    texts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    done: frozenset[int] = frozenset(),
    use_cache: bool = True,
    sampling: Sampling | None = None,
) -> Iterator[tuple[int, Completion]]:
    """Yield (index, answer) for every rendered text that is not `done`, batch by batch, as they are finished."""

    def answer(chosen: Sequence[str]) -> list[Completion]:
        return complete(model, chosen, max_new_tokens, use_cache=use_cache, sampling=sampling)

    return streamed(texts, answer, batch_size=batch_size, done=done)


def streamed(
    texts: Sequence[str],
    complete_batch: Callable[[Sequence[str]], list[Completion]],
    *,
    batch_size: int,
    done: frozenset[int],
) -> Iterator[tuple[int, Completion]]:
    """Yield (index, answer) for every text that is not `done`; `complete_batch` answers one batch of them."""

    def answer(batch: list[int]) -> list[tuple[int, Completion]]:
        answers = complete_batch([texts[index] for index in batch])
        return [(index, found) for index, found in zip(batch, answers, strict=True) if index not in done]

    for batch in batches_by_length(texts, batch_size):
        if not done.issuperset(batch):
            for part in halve_when_full(answer, batch):
                yield from part


def complete(
    model: ChatModel,
    texts: Sequence[str],
    max_new_tokens: int,
    use_cache: bool = True,
    cache: Any = None,
    sampling: Sampling | None = None,
) -> list[Completion]:
    """The answers to one batch of rendered texts; `cache` may hold the texts' beginnings already."""
    inputs = model.encode(texts)
    known = {} if cache is None else {cache_argument(model.model): cache}
    with torch.inference_mode(), drawing(sampling, texts):
        output = model.model.generate(
            **inputs,
            **known,
            max_new_tokens=max_new_tokens,
            use_cache=use_cache,
            pad_token_id=padding_token(model),
            **decoding(sampling),
        )
    return completions(model, output[:, inputs["input_ids"].shape[1] :])


def decoding(sampling: Sampling | None) -> dict[str, Any]:
    """How transformers' `generate` is to choose tokens."""
    return {
        "do_sample": sampling is not None,
        "temperature": None if sampling is None else sampling.temperature,
        # The whole distribution: a model's own generation settings would cut it off.
        "top_p": None if sampling is None else 1.0,
        "top_k": None if sampling is None else 0,
    }


def end_tokens(model: ChatModel) -> list[int]:
    """The tokens that end the model's turn."""
    named = model.model.generation_config.eos_token_id
    return named if isinstance(named, list) else [model.tokenizer.eos_token_id if named is None else named]


def completions(model: ChatModel, new: Tensor) -> list[Completion]:
    """Generated tokens [batch, tokens] as text."""
    answers = model.tokenizer.batch_decode(new, skip_special_tokens=True)
    ended = torch.isin(new, torch.tensor(end_tokens(model), device=new.device)).any(1).tolist()
    return [Completion(text, not end) for text, end in zip(answers, ended, strict=True)]


@contextlib.contextmanager
def drawing(sampling: Sampling | None, texts: Sequence[str]) -> Iterator[None]:
    """Random numbers that follow from the seed and the batch alone, whatever was drawn before; none are used up."""
    if sampling is None:
        yield
        return
    with torch.random.fork_rng():
        digest = hashlib.sha256("\0".join([str(sampling.seed), *texts]).encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7]))
        yield


def padding_token(model: ChatModel) -> int:
    """The token that fills up a batch; models that name none get their end-of-sequence token."""
    tokenizer = model.tokenizer
    token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    assert isinstance(token, int)
    return token
