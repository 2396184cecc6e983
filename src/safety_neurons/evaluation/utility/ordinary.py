"""The cost of a defense on ordinary prompts: how its answers change, and how far it moves the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from safety_neurons.core.statistics import Rate, mean, share
from safety_neurons.engines.engine import InProcess, uncached, weights_of
from safety_neurons.evaluation.contracts import Defended, EvaluationContext
from safety_neurons.evaluation.judges.readability import loops
from safety_neurons.models.chat import AttackedPrompt, ChatModel, Conversation
from safety_neurons.models.generate import BATCH_SIZE, in_batches
from safety_neurons.models.likelihood import distance, nll, perplexity, read_answers

# The tokens of the base model's answers over which perplexity is measured, as in benchmarks/tuning.py.
ANSWER_TOKENS = 48
# The same for the KL divergence. Their logits stay in memory: 0.5 GB for 100 prompts and 152,000 tokens.
KL_TOKENS = 16


@dataclass(frozen=True, eq=False)
class BaseAnswers:
    """The base model's own answers to prompts, their likelihood and logits; read once for all defenses.

    `nll` is in nats per token, None for an answer without tokens. `logits` predict the first tokens of each answer:
    [tokens, vocabulary] in the model's dtype, on the CPU.
    """

    identity: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    nll: tuple[float | None, ...]
    logits: tuple[Tensor, ...]
    answer_tokens: int
    batch_size: int


def read_base_answers(
    context: EvaluationContext,
    prompts: Sequence[str],
    *,
    answer_tokens: int = ANSWER_TOKENS,
    kl_tokens: int = KL_TOKENS,
    batch_size: int = BATCH_SIZE,
) -> BaseAnswers:
    """Ask the unchanged model, and read its answers back.

    Raises:
        CannotRunError: the model is behind a server.
    """
    model = weights_of(context.engine, "The KL divergence")
    answers = [completion.written for completion in context.answers([Conversation.of(prompt) for prompt in prompts])]
    texts = [model.render(prompt) for prompt in prompts]

    def read(batch: list[int]) -> list[tuple[float | None, Tensor]]:
        reading = read_answers(
            model, [texts[index] for index in batch], [answers[index] for index in batch], answer_tokens
        )
        first = slice(0, kl_tokens)
        logits = [row[first][real[first]].cpu() for row, real in zip(reading.logits, reading.real, strict=True)]
        return list(zip(nll(reading), logits, strict=True))

    nlls, logits = zip(*in_batches(texts, batch_size, read), strict=True)
    identity = context.engine.identity
    return BaseAnswers(identity, tuple(prompts), tuple(answers), nlls, logits, answer_tokens, batch_size)


@dataclass(frozen=True)
class Utility:
    """The answers to ordinary prompts under a defense; intervals of means are bootstraps over prompts.

    Lengths are those of the whole answers that the user reads, including the defense's own; `tokens` is None without a
    tokenizer. `looping` answers repeat themselves, `blocked` ones are the defense's, `cut_off` ones reached the limit.
    `kl_divergence` is KL(base || defended) in nats per token and `perplexity` the defended model's, both over the first
    tokens of the base model's answers. Where they are None, `no_kl_divergence` is the reason.
    """

    prompts: int
    words: Rate
    tokens: Rate | None
    looping: Rate
    blocked: Rate
    cut_off: Rate
    kl_divergence: Rate | None
    perplexity: Rate | None
    base_perplexity: Rate | None
    no_kl_divergence: str | None


def utility(
    context: EvaluationContext, defended: Defended, prompts: Sequence[str], base: BaseAnswers | None = None
) -> Utility:
    """Ask ordinary prompts while the defense is open.

    A defense that changes texts shows in the answers only; the KL divergence is that of the changed model. `base` was
    read on the same prompts before the defense was opened.

    Raises:
        ValueError: `base` was read on other prompts.
    """
    if base is not None and base.prompts != tuple(prompts):
        raise ValueError("the base model was read on other prompts")
    responses = defended.respond([AttackedPrompt(prompt) for prompt in prompts])
    # What was not run has no answer to measure.
    run = [(prompt, one) for prompt, one in zip(prompts, responses, strict=True) if one.outcome != "not run"]
    texts = [response.text for _, response in run]
    model, reason = defended.engine.model, _no_kl_divergence(defended, base)
    tokens = kl_divergence = moved = None
    if model is not None:
        lengths = [len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        tokens = mean(lengths, context.seed)
    if reason is None:
        assert model is not None
        assert base is not None
        distances, nlls = zip(*_read_again(model, base), strict=True)
        kl_divergence, moved = mean(distances, context.seed), _perplexity(nlls, context.seed)
    return Utility(
        prompts=len(run),
        words=mean([len(text.split()) for text in texts], context.seed),
        tokens=tokens,
        looping=share([loops(prompt, response.text) for prompt, response in run]),
        blocked=share([response.blocked for _, response in run]),
        cut_off=share([response.cut_off for _, response in run]),
        kl_divergence=kl_divergence,
        perplexity=moved,
        base_perplexity=None if base is None else _perplexity(base.nll, context.seed),
        no_kl_divergence=reason,
    )


def _no_kl_divergence(defended: Defended, base: BaseAnswers | None) -> str | None:
    if defended.engine.model is None:
        return f"{defended.engine.name} gives text only."
    if base is None:
        return "The base model's answers were not read."
    if not isinstance(uncached(defended.engine), InProcess):
        return "The defense changes decoding, which the model's own probabilities do not show."
    if defended.engine.identity == base.identity:
        return "The defense changes texts alone, not the model."
    return None


def _read_again(model: ChatModel, base: BaseAnswers) -> list[tuple[float | None, float | None]]:
    """KL(base || model) and the model's nll for each of the base model's answers."""
    texts = [model.render(prompt) for prompt in base.prompts]

    def read(batch: list[int]) -> list[tuple[float | None, float | None]]:
        reading = read_answers(
            model, [texts[index] for index in batch], [base.answers[index] for index in batch], base.answer_tokens
        )
        measured = []
        for index, logits, nats in zip(batch, reading.logits, nll(reading), strict=True):
            # The answer's tokens are the first of its row.
            before = base.logits[index].to(logits.device)
            measured.append((distance(before, logits[: len(before)]), nats))
        return measured

    return in_batches(texts, base.batch_size, read)


def _perplexity(nlls: Sequence[float | None], seed: int) -> Rate:
    nats = mean(nlls, seed)
    return replace(nats, value=perplexity(nats.value), low=perplexity(nats.low), high=perplexity(nats.high))
