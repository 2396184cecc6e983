"""What a run shares among the processes of torchrun: finding, tuning, and answering a grid.

Process 0 keeps the files. The others load the model themselves, do their share, and know what process 0 knows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safety_neurons.core.distributed import all_gather, ask_workers, owns, process_count, sync_errors
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.engine import CachedAnswer, CachedEngine, InProcess, WrappedEngine, computing_with
from safety_neurons.evaluation import attacks, defenses
from safety_neurons.evaluation.contracts import EvaluationContext, RunArtifacts
from safety_neurons.evaluation.grid import Cell, Plan, answer_grid
from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.generate import Completion, Sampling, batches_by_length
from safety_neurons.neurons import scores
from safety_neurons.neurons.find import ScoredNeurons, score_neurons
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.prompts import Prompt
from safety_neurons.runs.context import RunContext, engine_of, load_model, load_other_model
from safety_neurons.settings import Settings
from safety_neurons.tuning.batches import training_steps
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.safetune import tune


def score_together(
    model: ChatModel,
    settings: Settings,
    score: str,
    harmful: Sequence[str],
    benign: Sequence[str],
    other: ChatModel | None = None,
    advance: Advance = ignore,
) -> ScoredNeurons:
    """`score_neurons` with a run's settings; `other` is the second checkpoint, for scores that compare two."""
    ask_workers(ScoreTask(settings, score, tuple(harmful), tuple(benign)))
    return score_neurons(
        model,
        harmful,
        benign,
        settings.find,
        score=score,
        other=other,
        seed=settings.seed,
        batch_size=settings.batch_size,
        advance=advance,
    )


@dataclass(frozen=True)
class ScoreTask:
    """Help with `score_together`."""

    settings: Settings
    score: str
    harmful: tuple[str, ...]
    benign: tuple[str, ...]

    def run(self) -> None:
        with sync_errors():
            model = _loaded(self.settings)
            other = load_other_model(self.settings) if scores.get(self.score).compares_models else None
        score_together(model, self.settings, self.score, self.harmful, self.benign, other)


def train(run: RunContext, neurons: NeuronSet, corpus: Corpus, checkpoint: Path, title: str) -> NeuronDelta:
    """`tune_together` on a run, with its progress; `title` says what is tuned."""
    config = run.settings.tune
    steps = training_steps(corpus, config.batch_size, config.epochs)
    with run.listener.task(f"tuning {title}", steps) as advance:
        return tune_together(run.model, neurons, corpus, run.settings, checkpoint=checkpoint, advance=advance)


def tune_together(
    model: ChatModel,
    neurons: NeuronSet,
    corpus: Corpus,
    settings: Settings,
    *,
    checkpoint: Path | None = None,
    advance: Advance = ignore,
) -> NeuronDelta:
    """`tune` with a run's settings. The checkpoint stays until the caller has saved what it selects of the passes."""
    # Tuning does not need the directions.
    ask_workers(TuneTask(settings, replace(neurons, directions=None), corpus))
    return tune(
        model,
        neurons,
        corpus,
        settings.tune,
        checkpoint=checkpoint,
        keep_checkpoint=True,
        keep_passes=settings.tune.select,
        seed=settings.seed,
        advance=advance,
    )


@dataclass(frozen=True)
class TuneTask:
    """Help with `tune_together`; process 0 has the checkpoint."""

    settings: Settings
    neurons: NeuronSet
    corpus: Corpus

    def run(self) -> None:
        with sync_errors():
            model = _loaded(self.settings)
        tune_together(model, self.neurons, self.corpus, self.settings)


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
        with sync_errors():
            own = list(
                self.engine.answer(conversations, max_new_tokens=max_new_tokens, sampling=sampling, done=done | others)
            )
        for completions in all_gather(own, list[tuple[int, Completion]]):
            yield from completions


def answer_together(plan: Plan, context: EvaluationContext, settings: Settings) -> Iterator[Cell]:
    """`answer_grid`; the processes go through the same grid with models changed alike."""
    engine = context.engine
    if process_count() == 1 or not isinstance(engine, CachedEngine) or not isinstance(engine.engine, InProcess):
        return answer_grid(plan, context)
    ask_workers(
        AnswerTask(
            settings,
            plan.harmful,
            dict(plan.safe),
            context.answer_tokens,
            context.seed,
            tuple(context.harmful),
            tuple(context.benign),
            context.artifacts,
            context.folder,
            context.copies,
            engine.cache.entries,
        )
    )
    return answer_grid(plan, replace(context, engine=computing_with(engine, _shared)))


def _shared(engine: Any) -> SharedEngine:
    return SharedEngine(engine)


@dataclass(frozen=True)
class AnswerTask:
    """Help with `answer_together`: the requests of the plan, the fields of the context, and the cached answers."""

    settings: Settings
    harmful: tuple[Prompt, ...]
    safe: dict[str, tuple[Prompt, ...]]
    answer_tokens: int
    seed: int
    harmful_training: tuple[str, ...]
    benign_training: tuple[str, ...]
    artifacts: RunArtifacts
    folder: Path | None
    copies: Path | None
    responses: dict[str, CachedAnswer]

    def run(self) -> None:
        with sync_errors():
            model = _loaded(self.settings)
        engine = engine_of(model, self.settings, JsonlCache(None, CachedAnswer, self.responses))
        plan = Plan(
            tuple(map(attacks.get, self.settings.evaluate.attacks)),
            tuple(map(defenses.get, self.settings.evaluate.defenses)),
            self.harmful,
            self.safe,
        )
        context = EvaluationContext(
            computing_with(engine, _shared),
            self.answer_tokens,
            self.seed,
            self.harmful_training,
            self.benign_training,
            self.artifacts,
            self.folder,
            self.copies,
        )
        for _ in answer_grid(plan, context):
            pass


def _loaded(settings: Settings) -> ChatModel:
    """The model with its neurons found: where they cannot be, all processes should know."""
    model = load_model(settings)
    model.coverage  # noqa: B018
    return model


# Everything that process 0 asks the others to do.
TASKS = (ScoreTask, TuneTask, AnswerTask)
