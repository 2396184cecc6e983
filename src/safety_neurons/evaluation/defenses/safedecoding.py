"""SafeDecoding (Xu et al. 2024, arXiv 2402.08983): an expert tuned on refusals steers the first tokens of an answer.

Even a model that is about to comply finds the beginnings of refusals likely; the expert makes them the most likely.
Tokens that both find likely are weighted by how much more likely the expert finds them; then the model continues alone.
Answers that begin to comply later, or after a prefill, are out of reach.
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.engines.engine import Engine, InProcess, WrappedEngine, computing_with, weights_of
from safety_neurons.evaluation.contracts import Defended, Defense, EvaluationContext, required, respond_with
from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.generate import Completion, Sampling, completions, decode, drawing, streamed
from safety_neurons.models.reasoning import opens_thought
from safety_neurons.models.shared_prefix import Prompts
from safety_neurons.models.tokens import end_tokens, padding_token
from safety_neurons.tuning.config import Training
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.lora import Adapter, cached_lora

# The least weight of a token in the sample space, as in the authors' code.
LEAST = 1e-8


@dataclass(frozen=True)
class Steering:
    """How the first tokens are chosen; the defaults are the published ones.

    `alpha` is the weight of the expert's difference, `first` the number of tokens chosen with it (the paper's m), and
    `common` the minimum size of the sample space (the paper's c).
    """

    alpha: float = 3.0
    first: int = 2
    common: int = 5

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.first < 0 or self.common < 1:
            raise SafetyNeuronsError(
                f"SafeDecoding: alpha and first must be at least 0, and common at least 1, not {self.alpha}, "
                f"{self.first} and {self.common}."
            )


def steered(base: Tensor, expert: Tensor, steering: Steering) -> Tensor:
    """p + alpha * (p' - p) in the sample space, -inf outside it: float32 [batch, vocabulary], from logits of p and p'.

    The sample space is the tokens among the k most likely of both, for the smallest k that gives `common` of them.
    """
    worse = torch.maximum(_ranks(base), _ranks(expert))
    last = worse.sort(-1).values[:, min(steering.common, worse.shape[1]) - 1, None]
    before, after = (logits.float().softmax(-1) for logits in (base, expert))
    return torch.where(worse <= last, before + steering.alpha * (after - before), -torch.inf)


def _ranks(logits: Tensor) -> Tensor:
    """The rank of each token by likelihood, from 0; ties go to the lower token id."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(logits.shape[-1], device=logits.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def complete_safely(
    model: ChatModel,
    expert: Callable[[], AbstractContextManager[Any]],
    texts: Sequence[str],
    max_new_tokens: int,
    steering: Steering,
    sampling: Sampling | None = None,
) -> list[Completion]:
    """The answers to one batch of rendered texts.

    The model is its expert while `expert()` is open. Each of the two has its own cache.
    """
    inputs = model.encode(texts)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    start, ends = ids.shape[1], torch.tensor(end_tokens(model), device=ids.device)
    own, experts = (DynamicCache(config=model.model.config) for _ in range(2))
    with torch.inference_mode(), drawing(sampling, texts):
        for _ in range(min(steering.first, max_new_tokens)):
            scores = _next_scores(model, ids, mask, own)
            with expert():
                chosen = _chosen(steered(scores, _next_scores(model, ids, mask, experts), steering), sampling)
            ids, mask = torch.cat([ids, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)
        left = max_new_tokens - (ids.shape[1] - start)
        ended = torch.isin(ids[:, start:], ends).any(1)
        if left and not ended.all():
            ids = decode(model, _prompts(ids, mask, own), sampling, max_new_tokens=left)
    new = ids[:, start:]
    # Answers that ended early were continued with the others.
    is_end = torch.isin(new, ends).int()
    trimmed = new.masked_fill(is_end.cumsum(1) > is_end, padding_token(model))
    return completions(model, trimmed.tolist(), [bool(opens_thought(text)) for text in texts])


def _next_scores(model: ChatModel, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """The scores of the next token [batch, vocabulary]."""
    prompts = _prompts(ids, mask, cache)
    output = decode(model, prompts, None, max_new_tokens=1, output_scores=True, return_dict_in_generate=True)
    scores: Tensor = output.scores[0]
    return scores


def _prompts(ids: Tensor, mask: Tensor, cache: Any) -> Prompts:
    return Prompts({"input_ids": ids, "attention_mask": mask}, cache)


def _chosen(weights: Tensor, sampling: Sampling | None) -> Tensor:
    """The token with the largest weight of each row, or a sampled one: [batch, 1]."""
    if sampling is None:
        return weights.argmax(-1, keepdim=True)
    logarithms = torch.where(weights.isinf(), weights, weights.clamp_min(LEAST).log())
    return torch.multinomial((logarithms / sampling.temperature).softmax(-1), 1)


@dataclass(frozen=True)
class SafelyDecoded(WrappedEngine[InProcess]):
    """A model in this process whose first tokens are chosen with its expert (see `complete_safely`)."""

    expert: Callable[[], AbstractContextManager[Any]]
    steering: Steering

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        model, batch_size = self.engine.model, self.engine.batch_size

        def complete(texts: Sequence[str]) -> list[Completion]:
            return complete_safely(model, self.expert, texts, max_new_tokens, self.steering, sampling)

        texts = [model.render_conversation(conversation) for conversation in conversations]
        return streamed(model, texts, complete, max_new_tokens=max_new_tokens, batch_size=batch_size, done=done)


@dataclass(frozen=True, kw_only=True)
class SafeDecoding(Defense):
    """Decoding as in `Steering`, with the authors' training of the expert on two refusals of each of 36 requests.

    Their expert adapts the attention with dropout 0.1, ours adapts the MLPs without dropout.
    """

    alpha: float = Steering.alpha
    first: int = Steering.first
    common: int = Steering.common
    pairs: int = 72
    rank: int = 16
    lora_alpha: float = 64.0
    learning_rate: float = 2e-3
    epochs: int = 2

    def prepared(self, context: EvaluationContext) -> Self:
        self._expert(context)
        return self

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        steering = Steering(self.alpha, self.first, self.common)
        model = weights_of(context.engine, self.name)
        adapter = self._expert(context)
        under = context.under(f"safedecoding {adapter.digest} {steering}")
        # An attack with access to the model sees the one that writes all but the first tokens.
        with adapter.added(model) as changed, changed.disable_adapter():

            def steering_engine(engine: Engine) -> Engine:
                assert isinstance(engine, InProcess)
                return SafelyDecoded(engine, functools.partial(_enabled, changed), steering)

            defended = replace(under, engine=computing_with(under.engine, steering_engine))
            yield Defended(defended.engine, functools.partial(respond_with, defended))

    def _expert(self, context: EvaluationContext) -> Adapter:
        """Trained, or loaded from the context's folder."""
        model = weights_of(context.engine, self.name)
        training = Training(
            learning_rate=self.learning_rate,
            batch_size=1,
            epochs=self.epochs,
            schedule="linear",
            warmup=0.03,
            max_grad_norm=0.3,
            kl=0.0,
            seed=context.seed,
        )
        refusals, rank, alpha = self._refusals(context), self.rank, self.lora_alpha
        return cached_lora(context.folder, model, refusals, training, rank=rank, alpha=alpha, listener=context.listener)

    def _refusals(self, context: EvaluationContext) -> Corpus:
        corpus = required(context.artifacts.corpus, "corpus", self.name)
        refusals = [pair for pair in corpus.pairs if pair.kind == "refusal"]
        if self.pairs < 1:
            raise SafetyNeuronsError(f"{self.name}: pairs must be at least 1, not {self.pairs}.")
        if not refusals:
            raise CannotRunError(f"{self.name} trains its expert on refusals, and there are none in the run's corpus.")
        return Corpus(tuple(random.Random(context.seed).sample(refusals, min(self.pairs, len(refusals)))))


@contextlib.contextmanager
def _enabled(changed: Any) -> Iterator[None]:
    """Enables the adapters while the context is open."""
    changed.base_model.enable_adapter_layers()
    try:
        yield
    finally:
        changed.base_model.disable_adapter_layers()


DEFENSE = SafeDecoding(
    name="safedecoding",
    source="Xu et al. 2024, SafeDecoding: Defending against Jailbreak Attacks via Safety-Aware Decoding "
    "(arXiv 2402.08983); training of the expert as in the authors' code",
    description="The first two tokens are chosen together with an expert that refuses; then the model goes on alone.",
)
