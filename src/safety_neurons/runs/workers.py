"""What a run shares among the processes of torchrun: finding, tuning, and answering a grid.

Process 0 keeps the files. The others load the model themselves, do their share, and know what process 0 knows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safety_neurons.core.distributed import all_gather, ask_workers, owns, process_count, sync_errors
from safety_neurons.core.progress import Advance, Silence, ignore
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.engine import CachedAnswer, CachedEngine, InProcess, WrappedEngine, computing_with
from safety_neurons.evaluation import attacks, defenses
from safety_neurons.evaluation.contracts import EvaluationContext
from safety_neurons.evaluation.grid import Cell, Plan, answer_grid
from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.generate import Completion, Sampling, batches_by_length
from safety_neurons.neurons import scores
from safety_neurons.neurons.find import find
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.prompts import Prompt
from safety_neurons.runs.context import engine_of, load_model, load_other_model
from safety_neurons.settings import Settings
from safety_neurons.tuning.config import Validate, Validation
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.safetune import tune


def find_together(
    model: ChatModel,
    settings: Settings,
    harmful: Sequence[str],
    benign: Sequence[str],
    other: ChatModel | None = None,
    advance: Advance = ignore,
) -> NeuronSet:
    """`find` with a run's settings; `other` is the second checkpoint, for scores that compare two."""
    ask_workers(_help_find, settings=settings, harmful=list(harmful), benign=list(benign))
    return find(
        model,
        harmful,
        benign,
        settings.find,
        other=other,
        seed=settings.seed,
        batch_size=settings.batch_size,
        advance=advance,
    )


def _help_find(settings: Settings, harmful: Sequence[str], benign: Sequence[str]) -> None:
    with sync_errors():
        model = _loaded(settings)
        other = load_other_model(settings) if scores.get(settings.find.score).compares_models else None
    find_together(model, settings, harmful, benign, other)


def tune_together(
    model: ChatModel,
    neurons: NeuronSet,
    corpus: Corpus,
    settings: Settings,
    *,
    validate: Validate | None = None,
    checkpoint: Path | None = None,
    advance: Advance = ignore,
) -> NeuronDelta:
    """`tune` with a run's settings."""
    ask_workers(
        _help_tune,
        settings=settings,
        # Tuning does not need the directions.
        neurons=replace(neurons, directions=None),
        corpus=corpus,
        validate=None if validate is None else _not_here,
        checkpoint=checkpoint,
    )
    return tune(
        model,
        neurons,
        corpus,
        settings.tune,
        validate=validate,
        checkpoint=checkpoint,
        seed=settings.seed,
        advance=advance,
    )


def _not_here(_digest: str) -> Validation:
    raise AssertionError("Process 0 validates.")


def _help_tune(
    settings: Settings, neurons: NeuronSet, corpus: Corpus, validate: Validate | None, checkpoint: Path | None
) -> None:
    with sync_errors():
        model = _loaded(settings)
    tune_together(model, neurons, corpus, settings, validate=validate, checkpoint=checkpoint)


@dataclass(frozen=True)
class SharedEngine(WrappedEngine[InProcess]):
    """An engine whose processes compute every n-th batch each, and all get all answers; all have to ask the same."""

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        texts = [self.engine.model.render_conversation(conversation) for conversation in conversations]
        batches = batches_by_length(texts, self.engine.batch_size)
        others = {index for number, batch in enumerate(batches) if not owns(number) for index in batch}
        own = list(
            self.engine.answer(conversations, max_new_tokens=max_new_tokens, sampling=sampling, done=done | others)
        )
        for completions in all_gather(own):
            yield from completions


def answer_together(plan: Plan, context: EvaluationContext, settings: Settings) -> Iterator[Cell]:
    """`answer_grid`; the processes go through the same grid with models changed alike."""
    engine = context.engine
    if process_count() == 1 or not isinstance(engine, CachedEngine) or not isinstance(engine.engine, InProcess):
        return answer_grid(plan, context)
    ask_workers(
        _help_answer,
        settings=settings,
        harmful=plan.harmful,
        safe=dict(plan.safe),
        context=replace(context, engine=None, listener=Silence()),  # type: ignore[arg-type]
        responses=engine.cache.entries,
    )
    return answer_grid(plan, replace(context, engine=computing_with(engine, _shared)))


def _shared(engine: Any) -> SharedEngine:
    return SharedEngine(engine)


def _help_answer(
    settings: Settings,
    harmful: tuple[Prompt, ...],
    safe: dict[str, tuple[Prompt, ...]],
    context: EvaluationContext,
    responses: dict[str, CachedAnswer],
) -> None:
    with sync_errors():
        model = _loaded(settings)
    engine = engine_of(model, settings, JsonlCache(None, CachedAnswer, responses))
    plan = Plan(
        tuple(map(attacks.get, settings.evaluate.attacks)),
        tuple(map(defenses.get, settings.evaluate.defenses)),
        harmful,
        safe,
    )
    for _ in answer_grid(plan, replace(context, engine=computing_with(engine, _shared))):
        pass


def _loaded(settings: Settings) -> ChatModel:
    """The model with its neurons found: where they cannot be, all processes should know."""
    model = load_model(settings)
    model.coverage  # noqa: B018
    return model
