"""SafeDecoding: an expert tuned on the model's own refusals steers the first two tokens of every answer.

Even a model that is about to comply finds the beginnings of refusals likely; the expert makes them the likeliest. What
complies only later, or decides within a prefill, is not reached.
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Self

from safety_neurons.defenses.defense import Defended, Defense, respond_with
from safety_neurons.engines.bench import Bench
from safety_neurons.engines.engine import Around, Engine, weights_of
from safety_neurons.engines.in_process import InProcess
from safety_neurons.engines.kept import computing_with
from safety_neurons.errors import CannotRun, SafetyNeuronsError
from safety_neurons.models.conversation import Conversation
from safety_neurons.models.generate import Completion, Sampling, streamed
from safety_neurons.models.safe_decoding import Steering, complete_safely
from safety_neurons.tune.corpus import Corpus
from safety_neurons.tune.lora import Adapter, kept_lora
from safety_neurons.tune.training import Training


@dataclass(frozen=True)
class SafelyDecoded(Around[InProcess]):
    """A model in this process whose first tokens are chosen with its expert, which it is while `expert()` is open."""

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
        def complete(texts: Sequence[str]) -> list[Completion]:
            return complete_safely(self.engine.model, self.expert, texts, max_new_tokens, self.steering, sampling)

        texts = [self.engine.model.render_conversation(conversation) for conversation in conversations]
        return streamed(texts, complete, batch_size=self.engine.batch_size, done=done)


@dataclass(frozen=True, kw_only=True)
class SafeDecoding(Defense):
    """Decoding as in `Steering`, and the authors' training of the expert on two refusals each of 36 requests.

    Theirs adapts the attention and drops out a tenth of its inputs; ours adapts the MLPs, and drops out nothing.
    """

    alpha: float = Steering.alpha
    first: int = Steering.first
    common: int = Steering.common
    pairs: int = 72
    rank: int = 16
    lora_alpha: float = 64.0
    learning_rate: float = 2e-3
    epochs: int = 2

    def prepared(self, bench: Bench) -> Self:
        self._expert(bench)
        return self

    @contextlib.contextmanager
    def opened(self, bench: Bench) -> Iterator[Defended]:
        steering = Steering(self.alpha, self.first, self.common)
        model = weights_of(bench.engine, self.name)
        adapter = self._expert(bench)
        under = bench.under(f"safedecoding {adapter.digest} {steering}")
        # An attack that looks into the model sees the one that writes all but the first tokens.
        with adapter.added(model) as changed, changed.disable_adapter():

            def steering_engine(engine: Engine) -> Engine:
                assert isinstance(engine, InProcess)
                return SafelyDecoded(engine, functools.partial(_enabled, changed), steering)

            defended = replace(under, engine=computing_with(under.engine, steering_engine))
            yield Defended(defended.engine, functools.partial(respond_with, defended))

    def _expert(self, bench: Bench) -> Adapter:
        """Trained, or found in the bench's folder."""
        model = weights_of(bench.engine, self.name)
        training = Training(
            learning_rate=self.learning_rate,
            batch_size=1,
            epochs=self.epochs,
            schedule="linear",
            warmup=0.03,
            max_grad_norm=0.3,
            seed=bench.seed,
        )
        refusals, rank, alpha = self._refusals(bench), self.rank, self.lora_alpha
        return kept_lora(bench.folder, model, refusals, training, rank=rank, alpha=alpha, listener=bench.listener)

    def _refusals(self, bench: Bench) -> Corpus:
        corpus = bench.need("corpus", self.name)
        assert isinstance(corpus, Corpus)
        refusals = [pair for pair in corpus.pairs if pair.kind == "refusal"]
        if self.pairs < 1:
            raise SafetyNeuronsError(f"{self.name}: pairs is a whole number from 1 on, not {self.pairs}.")
        if not refusals:
            raise CannotRun(f"{self.name} trains its expert on refusals, and there are none in the run's corpus.")
        return Corpus(tuple(random.Random(bench.seed).sample(refusals, min(self.pairs, len(refusals)))))


@contextlib.contextmanager
def _enabled(changed: Any) -> Iterator[None]:
    """The adapters work while the context is open, in a model in which they do not otherwise."""
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
