"""What a defense costs on ordinary prompts: how its answers look, and how far it moves the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from safety_neurons.core.statistics import Rate, mean, share
from safety_neurons.engines.engine import InProcess, uncached, weights_of
from safety_neurons.evaluation.contracts import EvaluationContext
from safety_neurons.evaluation.defenses import Defended
from safety_neurons.evaluation.judges.readability import loops
from safety_neurons.models.chat import AttackedPrompt, ChatModel, Conversation
from safety_neurons.models.generate import BATCH_SIZE, in_batches
from safety_neurons.models.likelihood import distance, nll, perplexity, read_answers

# Over so many tokens of the base model's answers the perplexity is taken, as in benchmarks/tuning.py.
ANSWER_TOKENS = 48
# Over so many the divergence is: all logits of all of them are kept, for 100 prompts and 152,000 tokens 0.5 GB.
KL_TOKENS = 16


@dataclass(frozen=True, eq=False)
class BaseAnswers:
    """The base model's own answers to prompts, and what it says of them; read once, for all defenses.

    `surprise` is in nats per token, None for an answer without tokens. `logits` are those before the first tokens of
    each answer, [tokens, vocabulary] in the model's type, on the CPU.
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
    """Ask the model, which nothing may have changed yet, and read its answers back.

    Raises:
        CannotRun: the model is behind a server.
    """
    model = weights_of(context.engine, "The divergence")
    answers = [completion.text for completion in context.answers([Conversation.of(prompt) for prompt in prompts])]
    texts = [model.render(prompt) for prompt in prompts]

    def read(batch: list[int]) -> list[tuple[float | None, Tensor]]:
        reading = read_answers(
            model, [texts[index] for index in batch], [answers[index] for index in batch], answer_tokens
        )
        first = slice(0, kl_tokens)
        logits = [one[first][real[first]].cpu() for one, real in zip(reading.logits, reading.real, strict=True)]
        return list(zip(nll(reading), logits, strict=True))

    nlls, logits = zip(*in_batches(texts, batch_size, read), strict=True)
    identity = context.engine.identity
    return BaseAnswers(identity, tuple(prompts), tuple(answers), nlls, logits, answer_tokens, batch_size)


@dataclass(frozen=True)
class Utility:
    """What ordinary prompts get under a defense; intervals of means are bootstraps over prompts.

    Lengths are of the whole answers that the user reads, the defense's own among them; `tokens` is None where there is
    no tokenizer. `looping` falls into repetition, `blocked` was answered by the defense, `cut_off` ran into the limit.
    `divergence` is KL(base || defended) in nats per token and `perplexity` the defended model's, both over the
    first tokens of the base model's own answers; where they are None, `no_divergence` says why.
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

    What a defense does to texts shows in the answers only: the divergence is that of the model, as the defense has
    changed it. `base` was read on the same prompts before the defense was opened.

    Raises:
        ValueError: `base` was read on other prompts.
    """
    if base is not None and base.prompts != tuple(prompts):
        raise ValueError("the base model was read on other prompts")
    responses = defended.respond([AttackedPrompt(prompt) for prompt in prompts])
    texts = [response.text for response in responses]
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
        prompts=len(prompts),
        words=mean([len(text.split()) for text in texts], context.seed),
        tokens=tokens,
        looping=share([loops(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]),
        blocked=share([response.blocked for response in responses]),
        cut_off=share([response.cut_off for response in responses]),
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
        return "The defense decodes in its own way, which the model's own probabilities do not show."
    if defended.engine.identity == base.identity:
        return "The model is the base one: only texts are changed, if anything is."
    return None


def _read_again(model: ChatModel, base: BaseAnswers) -> list[tuple[float | None, float | None]]:
    """KL(base || model) and the model's surprise for each of the base model's answers."""
    texts = [model.render(prompt) for prompt in base.prompts]

    def read(batch: list[int]) -> list[tuple[float | None, float | None]]:
        reading = read_answers(
            model,
            [texts[index] for index in batch],
            [base.answers[index] for index in batch],
            base.answer_tokens,
        )
        found = []
        for index, logits, how in zip(batch, reading.logits, nll(reading), strict=True):
            # An answer's tokens are its row's first ones.
            before = base.logits[index].to(logits.device)
            found.append((distance(before, logits[: len(before)]), how))
        return found

    return in_batches(texts, base.batch_size, read)


def _perplexity(nlls: Sequence[float | None], seed: int) -> Rate:
    found = mean(nlls, seed)
    return replace(found, value=perplexity(found.value), low=perplexity(found.low), high=perplexity(found.high))
