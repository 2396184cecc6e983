"""LoRA on all matrices of the MLPs, trained on the run's corpus: the usual way to tune, beside the safety neurons.

The adapters are merged into the weights, so that an answer costs nothing more.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from safety_neurons.defenses.defense import Defended, Defense, respond_with
from safety_neurons.engines.bench import Bench
from safety_neurons.engines.engine import weights_of
from safety_neurons.settings import TuneSettings
from safety_neurons.tune.corpus import Corpus
from safety_neurons.tune.lora import ALPHA, RANK, kept_lora


@dataclass(frozen=True, kw_only=True)
class Lora(Defense):
    """The adapters' rank and alpha, and how they are trained; all else is as `tune` trains by default."""

    rank: int = RANK
    alpha: float = ALPHA
    learning_rate: float = 3e-4
    epochs: int = 2

    @contextlib.contextmanager
    def opened(self, bench: Bench) -> Iterator[Defended]:
        model = weights_of(bench.engine, self.name)
        corpus = bench.need("corpus", self.name)
        assert isinstance(corpus, Corpus)
        usual = TuneSettings().training(bench.seed)
        training = replace(usual, learning_rate=self.learning_rate, epochs=self.epochs)
        adapter = kept_lora(
            bench.folder, model, corpus, training, rank=self.rank, alpha=self.alpha, listener=bench.listener
        )
        tuned = bench.under(f"lora {adapter.digest}")
        with adapter.merged(model):
            yield Defended(tuned.engine, functools.partial(respond_with, tuned))


DEFENSE = Lora(
    name="lora",
    source="Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685)",
    description="Low-rank changes of the whole MLPs, trained on the same corpus as the safety neurons.",
)
