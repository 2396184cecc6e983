"""LoRA on all matrices of the MLPs, trained on the run's corpus: the usual way to tune, beside the safety neurons.

The adapters are merged into the weights, so that an answer costs nothing more.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from safety_neurons.engines.engine import weights_of
from safety_neurons.evaluation.contracts import Defended, Defense, EvaluationContext, required, respond_with
from safety_neurons.tuning.config import Training
from safety_neurons.tuning.lora import ALPHA, RANK, Adapter, kept_lora


@dataclass(frozen=True, kw_only=True)
class Lora(Defense):
    """The adapters' rank and alpha, and how they are trained; all else is as `tune` trains by default."""

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
        tuned = context.under(f"lora {adapter.digest}")
        with adapter.merged(weights_of(context.engine, self.name)):
            yield Defended(tuned.engine, functools.partial(respond_with, tuned))

    def _adapter(self, context: EvaluationContext) -> Adapter:
        """Trained, or found in the bench's folder."""
        corpus = required(context.artifacts.corpus, "corpus", self.name)
        training = Training(learning_rate=self.learning_rate, epochs=self.epochs, seed=context.seed)
        model = weights_of(context.engine, self.name)
        return kept_lora(
            context.folder, model, corpus, training, rank=self.rank, alpha=self.alpha, listener=context.listener
        )


DEFENSE = Lora(
    name="lora",
    source="Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685)",
    description="Low-rank changes of the whole MLPs, trained on the same corpus as the safety neurons.",
)
