"""Batches of texts, and generation in batches whose order is fixed, so that a resumed run gives the same text."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.context import context_length
from safety_neurons.models.forward import cache_argument
from safety_neurons.models.reasoning import AnswerLength, opens_thought, part, texts_of
from safety_neurons.models.shared_prefix import Prompts, share_prefix
from safety_neurons.models.tokens import end_tokens, padding_token

if TYPE_CHECKING:
    from safety_neurons.models.chat import ChatModel

T = TypeVar("T")

BATCH_SIZE = 32


def batches_by_length(texts: Sequence[str], batch_size: int) -> list[list[int]]:
    """Indices of the texts in batches of similar length.

    The batches depend on all texts, also on those that are done already: otherwise a resumed run would form other
    batches, and its results would be rounded differently.
    """
    order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), texts[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def halve_when_full(work: Callable[[list[int]], T], batch: list[int]) -> list[T]:
    """Run `work` on the batch, or on its halves if memory runs out; returns the results in order.

    Raises:
        SafetyNeuronsError: memory runs out on a single text.
    """
    try:
        return [work(batch)]
    except (MemoryError, RuntimeError) as error:
        # PyTorch reports full memory of the CPU and of some devices as a plain RuntimeError.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not should_reduce_batch_size(error):
            raise
        if len(batch) == 1:
            raise SafetyNeuronsError(
                "Out of memory on a single prompt. Use a smaller model, shorter answers, dtype bfloat16, quantization "
                "to 4bit, or device_map auto."
            ) from error
    clear_device_cache()
    middle = len(batch) // 2
    return halve_when_full(work, batch[:middle]) + halve_when_full(work, batch[middle:])


def run_batches(
    texts: Sequence[str],
    batch_size: int,
    work: Callable[[list[int]], T],
    *,
    skip: Callable[[int, list[int]], bool] = lambda _number, _batch: False,
    advance: Advance = ignore,
) -> Iterator[T]:
    """Yield the results of `work` for batches of indices of similar length, halved when memory runs out.

    Args:
        skip: whether to skip a batch, from its number and its indices.
        advance: called with the size of each batch, also of skipped ones.
    """
    for number, batch in enumerate(batches_by_length(texts, batch_size)):
        if not skip(number, batch):
            yield from halve_when_full(work, batch)
        advance(len(batch))


def in_batches(
    texts: Sequence[str], batch_size: int, read: Callable[[list[int]], Sequence[T]], advance: Advance = ignore
) -> list[T]:
    """One result per text, in the order of the texts; `read` returns those of one batch of indices."""
    found: dict[int, T] = {}

    def work(batch: list[int]) -> None:
        found.update(zip(batch, read(batch), strict=True))

    for _ in run_batches(texts, batch_size, work, advance=advance):
        pass
    return [found[index] for index in range(len(texts))]


# Why an answer that ends inside a thought is not judged.
UNFINISHED = "unfinished reasoning"
# "blocked": a content filter answered in the model's place; "not run": the prompt could not be asked.
Outcome = Literal["answered", "blocked", "not run"]


class Completion(NamedTuple):
    """What the model wrote after the prefill; `cut_off` if it reached the token limit before it ended its turn.

    `reasoning` is the thought before the answer, with its marks; `text` is the answer alone. `reason` says why a prompt
    was blocked or not run.
    """

    text: str
    cut_off: bool
    reasoning: str = ""
    outcome: Outcome = "answered"
    reason: str = ""

    @property
    def written(self) -> str:
        """The reasoning and the answer."""
        return f"{self.reasoning}{self.text}"

    @property
    def unscored(self) -> str:
        """Why there is no answer to judge; empty if there is one."""
        if self.outcome == "not run":
            return f"not run: {self.reason}"
        if self.outcome == "blocked" or self.text.strip():
            return ""
        # A prefill alone is not the model's answer.
        return UNFINISHED if self.reasoning and self.cut_off else "empty"


class Sampling(NamedTuple):
    """Sampled instead of greedy answers; reproducible for the same seed and the same batch.

    Tokens less likely than `min_p` times the likeliest are not sampled (Nguyen et al. 2024, arXiv 2407.01082).
    """

    temperature: float
    seed: int
    min_p: float = 0.0


def generate(
    model: "ChatModel",
    texts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    done: frozenset[int] = frozenset(),
    use_cache: bool = True,
    sampling: Sampling | None = None,
) -> Iterator[tuple[int, Completion]]:
    """Yield (index, answer) for every rendered text that is not `done`, batch by batch."""

    def answer(chosen: Sequence[str]) -> list[Completion]:
        return complete(model, chosen, max_new_tokens, use_cache=use_cache, sampling=sampling)

    return streamed(model, texts, answer, max_new_tokens=max_new_tokens, batch_size=batch_size, done=done)


def streamed(
    model: "ChatModel",
    texts: Sequence[str],
    complete_batch: Callable[[Sequence[str]], list[Completion]],
    *,
    max_new_tokens: int,
    batch_size: int,
    done: frozenset[int],
) -> Iterator[tuple[int, Completion]]:
    """Yield (index, answer) for every text that is not `done`; `complete_batch` answers one batch of texts.

    A text that is too long for the model is not run.
    """
    unfit = model.too_long(texts, max_new_tokens)
    for index, reason in unfit.items():
        if index not in done:
            yield index, Completion("", False, outcome="not run", reason=reason)
    places = [index for index in range(len(texts)) if index not in unfit]
    fitting = [texts[place] for place in places]

    def answer(batch: list[int]) -> list[tuple[int, Completion]]:
        answers = complete_batch([fitting[index] for index in batch])
        chosen = zip((places[index] for index in batch), answers, strict=True)
        return [(place, found) for place, found in chosen if place not in done]

    def skip(_: int, batch: list[int]) -> bool:
        return done.issuperset(places[index] for index in batch)

    for answered in run_batches(fitting, batch_size, answer, skip=skip):
        yield from answered


def complete(
    model: "ChatModel",
    texts: Sequence[str],
    max_new_tokens: int,
    use_cache: bool = True,
    cache: Any = None,
    sampling: Sampling | None = None,
) -> list[Completion]:
    """Answer one batch of rendered texts; `cache` may hold their prefixes."""
    answers = complete_to(model, texts, (max_new_tokens,), use_cache=use_cache, cache=cache, sampling=sampling)
    return [by_length[max_new_tokens] for by_length in answers]


def complete_to(
    model: "ChatModel",
    texts: Sequence[str],
    lengths: Sequence[int],
    use_cache: bool = True,
    cache: Any = None,
    sampling: Sampling | None = None,
) -> list[dict[int, Completion]]:
    """`complete` for several lengths in tokens at once: one answer to each text, cut to each length.

    Only the longest is generated. The cuts are exact, as no token depends on the limit.
    """
    prompts = Prompts(dict(model.encode(texts)), cache)
    inside = [bool(opens_thought(text)) for text in texts]
    length = AnswerLength(model.tokenizer, prompts.inputs["input_ids"].shape[1], max(lengths), inside)
    context = context_length(model.model.config)

    def most(new_tokens: int) -> int:
        """The limit of the answer and the thought before it, which may be as long as the context allows."""
        with_thought = new_tokens + (model.reasoning_tokens if model.may_think else 0)
        return max(new_tokens, min(with_thought, context - length.start)) if context else with_thought

    with torch.inference_mode(), drawing(sampling, texts):
        if cache is None and use_cache:
            prompts = share_prefix(model.model, prompts.inputs, new_tokens=most(max(lengths)))
        output = decode(model, prompts, sampling, [length], max_new_tokens=most(max(lengths)), use_cache=use_cache)
    new = output[:, length.start :]
    cut = {each: completions(model, length.own_tokens(new[:, : most(each)], each), inside) for each in lengths}
    return [{each: answers[row] for each, answers in cut.items()} for row in range(len(texts))]


def decode(
    model: "ChatModel",
    prompts: Prompts,
    sampling: Sampling | None,
    stopping: Sequence[StoppingCriteria] = (),
    **settings: Any,
) -> Any:
    """The output of transformers' `generate` under the settings given here alone: greedy, or sampled."""
    cache = {} if prompts.cache is None else {cache_argument(model.model): prompts.cache}
    drawn = (
        {}
        if sampling is None
        # The full distribution; transformers' own default is the 50 likeliest tokens.
        else {"temperature": sampling.temperature, "min_p": sampling.min_p, "top_p": 1.0, "top_k": 0}
    )
    with only_settings(model, do_sample=sampling is not None, **drawn, **settings) as config:
        return model.model.generate(
            **prompts.inputs, **cache, generation_config=config, stopping_criteria=StoppingCriteriaList(stopping)
        )


@contextlib.contextmanager
def only_settings(model: "ChatModel", **settings: Any) -> Iterator[GenerationConfig]:
    """The generation settings of the model are these, its end tokens and its padding while the context is open.

    A model's own generation config (beams, penalties, stop strings ...) fills whatever an argument leaves out.
    """
    config = GenerationConfig(eos_token_id=end_tokens(model) or None, pad_token_id=padding_token(model), **settings)
    before, model.model.generation_config = model.model.generation_config, config
    try:
        yield config
    finally:
        model.model.generation_config = before


def completions(model: "ChatModel", new: Sequence[Sequence[int]], inside: Sequence[bool]) -> list[Completion]:
    """Generated tokens [batch][tokens] as reasoning and answer; `inside`: the prompt ends inside a thought."""
    ends = set(end_tokens(model))
    # What follows an end is padding, and not all ends are special tokens, which the text leaves out.
    lengths = [next((place for place, token in enumerate(row) if token in ends), None) for row in new]
    texts = texts_of(model.tokenizer, [row[:length] for row, length in zip(new, lengths, strict=True)])
    parts = [part(text, within) for text, within in zip(texts, inside, strict=True)]
    return [Completion(one.answer, length is None, one.reasoning) for one, length in zip(parts, lengths, strict=True)]


@contextlib.contextmanager
def drawing(sampling: Sampling | None, texts: Sequence[str]) -> Iterator[None]:
    """Seed the random numbers from the seed and the batch alone; the state outside is left as it was."""
    if sampling is None:
        yield
        return
    with torch.random.fork_rng():
        digest = hashlib.sha256("\0".join([str(sampling.seed), *texts]).encode(errors="surrogatepass")).digest()
        torch.manual_seed(int.from_bytes(digest[:7]))
        yield
