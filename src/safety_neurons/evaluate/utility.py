"""What a defence costs on ordinary prompts: how its answers look, and how far it moves the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from safety_neurons.attacks import AttackedPrompt
from safety_neurons.defenses import Defended
from safety_neurons.engines.bench import Bench
from safety_neurons.engines.engine import weights_of
from safety_neurons.engines.in_process import InProcess
from safety_neurons.engines.kept import uncached
from safety_neurons.evaluate.likelihood import distance, perplexity, read_answers, surprise
from safety_neurons.evaluate.rows import Rate, mean, share
from safety_neurons.judges.readability import loops
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.conversation import Conversation
from safety_neurons.models.generate import BATCH_SIZE, in_batches

# Over so many tokens of the untouched model's answers the perplexity is taken, as in benchmarks/tuning.py.
ANSWER_TOKENS = 48
# Over so many the divergence is: all logits of all of them are kept, for 100 prompts and 152,000 tokens 0.5 GB.
DIVERGENCE_TOKENS = 16


@dataclass(frozen=True, eq=False)
class Untouched:
    """The untouched model's own answers to prompts, and what it says of them; read once, for all defences.

    `surprise` is in nats per token, None for an answer without tokens. `logits` are those before the first tokens of
    each answer, [tokens, vocabulary] in the model's type, on the CPU.
    """

    identity: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    surprise: tuple[float | None, ...]
    logits: tuple[Tensor, ...]
    answer_tokens: int
    batch_size: int


def read_untouched(
    bench: Bench,
    prompts: Sequence[str],
    *,
    answer_tokens: int = ANSWER_TOKENS,
    divergence_tokens: int = DIVERGENCE_TOKENS,
    batch_size: int = BATCH_SIZE,
) -> Untouched:
    """Ask the model, which nothing may have changed yet, and read its answers back.

    Raises:
        CannotRun: the model is behind a server.
    """
    model = weights_of(bench.engine, "The divergence")
    answers = [completion.text for completion in bench.answers([Conversation.of(prompt) for prompt in prompts])]
    texts = [model.render(prompt) for prompt in prompts]

    def read(batch: list[int]) -> list[tuple[float | None, Tensor]]:
        reading = read_answers(
            model, [texts[index] for index in batch], [answers[index] for index in batch], answer_tokens
        )
        first = slice(0, divergence_tokens)
        logits = [one[first][real[first]].cpu() for one, real in zip(reading.logits, reading.real, strict=True)]
        return list(zip(surprise(reading), logits, strict=True))

    surprises, logits = zip(*in_batches(texts, batch_size, read), strict=True)
    identity = bench.engine.identity
    return Untouched(identity, tuple(prompts), tuple(answers), surprises, logits, answer_tokens, batch_size)


@dataclass(frozen=True)
class Utility:
    """What ordinary prompts get under a defence; intervals of means are bootstraps over prompts.

    Lengths are of the whole answers that the user reads, the defence's own among them; `tokens` is None where there is
    no tokenizer. `looping` falls into repetition, `blocked` was answered by the defence, `cut_off` ran into the limit.
    `divergence` is KL(untouched || defended) in nats per token and `perplexity` the defended model's, both over the
    first tokens of the untouched model's own answers; where they are None, `no_divergence` says why.
    """

    prompts: int
    words: Rate
    tokens: Rate | None
    looping: Rate
    blocked: Rate
    cut_off: Rate
    divergence: Rate | None
    perplexity: Rate | None
    untouched_perplexity: Rate | None
    no_divergence: str | None


def utility(bench: Bench, defended: Defended, prompts: Sequence[str], untouched: Untouched | None = None) -> Utility:
    """Ask ordinary prompts while the defence is open.

    What a defence does to texts shows in the answers only: the divergence is that of the model, as the defence has
    changed it. `untouched` was read on the same prompts before the defence was opened.

    Raises:
        ValueError: `untouched` was read on other prompts.
    """
    if untouched is not None and untouched.prompts != tuple(prompts):
        raise ValueError("the untouched model was read on other prompts")
    responses = defended.respond([AttackedPrompt(prompt) for prompt in prompts])
    texts = [response.text for response in responses]
    model, reason = defended.engine.model, _no_divergence(defended, untouched)
    tokens = divergence = moved = None
    if model is not None:
        lengths = [len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        tokens = mean(lengths, bench.seed)
    if reason is None:
        assert model is not None
        assert untouched is not None
        distances, surprises = zip(*_read_again(model, untouched), strict=True)
        divergence, moved = mean(distances, bench.seed), _perplexity(surprises, bench.seed)
    return Utility(
        prompts=len(prompts),
        words=mean([len(text.split()) for text in texts], bench.seed),
        tokens=tokens,
        looping=share([loops(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]),
        blocked=share([response.blocked for response in responses]),
        cut_off=share([response.cut_off for response in responses]),
        divergence=divergence,
        perplexity=moved,
        untouched_perplexity=None if untouched is None else _perplexity(untouched.surprise, bench.seed),
        no_divergence=reason,
    )


def _no_divergence(defended: Defended, untouched: Untouched | None) -> str | None:
    if defended.engine.model is None:
        return f"{defended.engine.name} gives text only."
    if untouched is None:
        return "The untouched model's answers were not read."
    if not isinstance(uncached(defended.engine), InProcess):
        return "The defence decodes in its own way, which the model's own probabilities do not show."
    if defended.engine.identity == untouched.identity:
        return "The model is the untouched one: only texts are changed, if anything is."
    return None


def _read_again(model: ChatModel, untouched: Untouched) -> list[tuple[float | None, float | None]]:
    """KL(untouched || model) and the model's surprise for each of the untouched model's answers."""
    texts = [model.render(prompt) for prompt in untouched.prompts]

    def read(batch: list[int]) -> list[tuple[float | None, float | None]]:
        reading = read_answers(
            model,
            [texts[index] for index in batch],
            [untouched.answers[index] for index in batch],
            untouched.answer_tokens,
        )
        found = []
        for index, logits, how in zip(batch, reading.logits, surprise(reading), strict=True):
            # An answer's tokens are its row's first ones.
            before = untouched.logits[index].to(logits.device)
            found.append((distance(before, logits[: len(before)]), how))
        return found

    return in_batches(texts, untouched.batch_size, read)


def _perplexity(surprises: Sequence[float | None], seed: int) -> Rate:
    found = mean(surprises, seed)
    return replace(found, value=perplexity(found.value), low=perplexity(found.low), high=perplexity(found.high))
