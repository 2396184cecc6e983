"""Defenses made from a run: SafeTuning (its delta), its guard, and LoRA trained on its corpus.

None of them makes an answer slower: the guard decides while the prompt is read, the others change weights.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from safety_neurons.calibration.guard import guard
from safety_neurons.engines.engine import weights_of
from safety_neurons.evaluation.contracts import Defended, Defense, EvaluationContext, required, respond_with
from safety_neurons.tuning.config import Training
from safety_neurons.tuning.lora import ALPHA, RANK, Adapter, cached_lora


def _defended(context: EvaluationContext) -> Defended:
    return Defended(context.engine, functools.partial(respond_with, context))


@dataclass(frozen=True, kw_only=True)
class SafeTuning(Defense):
    """The run's delta, multiplied by `scale`."""

    scale: float = 1.0

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        delta = required(context.artifacts.delta, "delta", self.name)
        delta = delta if self.scale == 1.0 else delta.scale(self.scale)
        with delta.apply(weights_of(context.engine, self.name)):
            yield _defended(context.under(f"{self.name} {delta.digest}"))


@dataclass(frozen=True, kw_only=True)
class GuardDefense(Defense):
    """The run's guard, by default with its own false-positive rate and alpha.

    An attack that hides the harm from the early layers passes.
    """

    false_positive_rate: float | None = None
    alpha: float | None = None

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        fitted = required(context.artifacts.guard, "guard", self.name)
        if self.false_positive_rate is not None:
            fitted = fitted.at(self.false_positive_rate)
        if self.alpha is not None:
            fitted = replace(fitted, alpha=self.alpha)
        with guard(weights_of(context.engine, self.name), fitted):
            yield _defended(context.under(f"guard {fitted.digest}"))


@dataclass(frozen=True, kw_only=True)
class Lora(Defense):
    """Adapters on all MLP matrices, merged into the weights: the usual way of tuning, to compare SafeTuning with.

    All other training options are the defaults of `safety-neurons tune`.
    """

    rank: int = RANK
    alpha: float = ALPHA
    learning_rate: float = 3e-4
    epochs: int = 2

    def prepared(self, context: EvaluationContext) -> Self:
        self._adapter(context)
        return self

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        adapter = self._adapter(context)
        with adapter.merged(weights_of(context.engine, self.name)):
            yield _defended(context.under(f"lora {adapter.digest}"))

    def _adapter(self, context: EvaluationContext) -> Adapter:
        """Trained, or loaded from the context's folder."""
        corpus = required(context.artifacts.corpus, "corpus", self.name)
        training = Training(learning_rate=self.learning_rate, epochs=self.epochs, kl=2.0, seed=context.seed)
        model = weights_of(context.engine, self.name)
        return cached_lora(
            context.folder, model, corpus, training, rank=self.rank, alpha=self.alpha, listener=context.listener
        )


DEFENSES = (
    SafeTuning(
        name="safetuning",
        source="Zhao, Ke, Huang 2026, Unraveling LLM Jailbreaks Through Safety Knowledge Neurons (EACL)",
        description="Only the safety neurons are fine-tuned; nothing is added when the model answers.",
    ),
    GuardDefense(
        name="guard",
        source="Zhao, Ke, Huang 2026, Unraveling LLM Jailbreaks Through Safety Knowledge Neurons (EACL): its "
        "calibration, on the prompts that a detector on the same neurons flags",
        description="Safety neurons read the prompt, and push the model to refuse where they find harm.",
    ),
    Lora(
        name="lora",
        source="Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685)",
        description="Low-rank changes of the whole MLPs, trained on the same corpus as the safety neurons.",
    ),
)
