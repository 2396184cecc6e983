"""A grid that is answered by several processes (torchrun): each computes every n-th batch, and all have all answers.

The processes go through the same grid with models changed alike; only process 0 keeps files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safety_neurons.core.distributed import all_gather, owns, process_count, sync_errors
from safety_neurons.core.files import JsonlCache
from safety_neurons.engines.engine import CachedEngine, InProcess, WrappedEngine, computing_with
from safety_neurons.evaluation import attacks, defenses
from safety_neurons.evaluation.contracts import EvaluationContext, RunArtifacts
from safety_neurons.evaluation.grid import Cell, Plan, answer_grid
from safety_neurons.models.chat import Conversation
from safety_neurons.models.generate import Completion, Sampling, batches_by_length
from safety_neurons.prompts import Prompt
from safety_neurons.runs.context import load_model
from safety_neurons.runs.workers import ask_workers
from safety_neurons.settings import Settings


@dataclass(frozen=True)
class Shared(WrappedEngine[InProcess]):
    """An engine whose batches are shared out; all processes have to ask it the same."""

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
        mine = list(
            self.engine.answer(conversations, max_new_tokens=max_new_tokens, sampling=sampling, done=done | others)
        )
        for given in all_gather(mine):
            yield from given


def answered_together(plan: Plan, context: EvaluationContext, kept: JsonlCache, settings: Settings) -> Iterator[Cell]:
    """`answer_grid`, with the help of the other processes where there are any."""
    engine = context.engine
    if process_count() == 1 or not isinstance(engine, CachedEngine) or not isinstance(engine.engine, InProcess):
        return answer_grid(plan, context, kept)
    ask_workers(
        _help_answer,
        settings,
        attack_names=[one.name for one in plan.attacks],
        defense_names=[one.name for one in plan.defenses],
        harmful=plan.harmful,
        safe=dict(plan.safe),
        artifacts=context.artifacts,
        learnt=(context.harmful, context.benign),
        folder=context.folder,
        answers=kept.entries,
        generations=engine.cache.entries,
    )
    return answer_grid(plan, replace(context, engine=computing_with(engine, _share)), kept)


def _share(engine: Any) -> Shared:
    return Shared(engine)


def _help_answer(
    settings: Settings,
    attack_names: Sequence[str],
    defense_names: Sequence[str],
    harmful: tuple[Prompt, ...],
    safe: dict[str, tuple[Prompt, ...]],
    artifacts: RunArtifacts,
    learnt: tuple[Sequence[str], Sequence[str]],
    folder: Path,
    answers: dict[str, Any],
    generations: dict[str, Any],
) -> None:
    with sync_errors():
        model = load_model(settings)
        model.coverage  # noqa: B018
    engine = CachedEngine(Shared(InProcess(model, settings.batch_size)), JsonlCache(None, generations))
    context = EvaluationContext(
        engine, settings.evaluate.answer_tokens, settings.seed, *learnt, artifacts, folder, copies=settings.data_dir
    )
    plan = Plan(tuple(map(attacks.get, attack_names)), tuple(map(defenses.get, defense_names)), harmful, safe)
    for _ in answer_grid(plan, context, JsonlCache(None, answers)):
        pass
