"""A grid that is answered by several processes (torchrun): each computes every n-th batch, and all have all answers.

The processes go through the same grid with models changed alike; only process 0 keeps files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safety_neurons import attacks, defenses
from safety_neurons.engines.bench import Artefacts, Bench
from safety_neurons.engines.engine import Around
from safety_neurons.engines.in_process import InProcess
from safety_neurons.engines.kept import Kept, computing_with
from safety_neurons.evaluate.grid import Cell, Plan, answer_grid
from safety_neurons.find.processes import all_or_none, from_all_processes, is_mine, process_count
from safety_neurons.kept_lines import KeptLines
from safety_neurons.models.conversation import Conversation
from safety_neurons.models.generate import Completion, Sampling, batches_by_length
from safety_neurons.prompts import Prompt
from safety_neurons.run.torchrun import ask_for
from safety_neurons.run.workplace import load_model
from safety_neurons.settings import Settings


@dataclass(frozen=True)
class Shared(Around[InProcess]):
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
        others = {index for number, batch in enumerate(batches) if not is_mine(number) for index in batch}
        mine = list(
            self.engine.answer(conversations, max_new_tokens=max_new_tokens, sampling=sampling, done=done | others)
        )
        for given in from_all_processes(mine):
            yield from given


def answered_together(plan: Plan, bench: Bench, kept: KeptLines, settings: Settings) -> Iterator[Cell]:
    """`answer_grid`, with the help of the other processes where there are any."""
    engine = bench.engine
    if process_count() == 1 or not isinstance(engine, Kept) or not isinstance(engine.engine, InProcess):
        return answer_grid(plan, bench, kept)
    ask_for(
        _help_answer,
        settings,
        attack_names=[one.name for one in plan.attacks],
        defense_names=[one.name for one in plan.defenses],
        harmful=plan.harmful,
        safe=dict(plan.safe),
        made=bench.made,
        learnt=(bench.harmful, bench.benign),
        folder=bench.folder,
        answers=kept.by_key,
        generations=engine.kept.by_key,
    )
    return answer_grid(plan, replace(bench, engine=computing_with(engine, _share)), kept)


def _share(engine: Any) -> Shared:
    return Shared(engine)


def _help_answer(
    settings: Settings,
    attack_names: Sequence[str],
    defense_names: Sequence[str],
    harmful: tuple[Prompt, ...],
    safe: dict[str, tuple[Prompt, ...]],
    made: Artefacts,
    learnt: tuple[Sequence[str], Sequence[str]],
    folder: Path,
    answers: dict[str, Any],
    generations: dict[str, Any],
) -> None:
    with all_or_none():
        model = load_model(settings)
        model.coverage  # noqa: B018
    engine = Kept(Shared(InProcess(model, settings.batch_size)), KeptLines(None, generations))
    bench = Bench(
        engine, settings.evaluate.answer_tokens, settings.seed, *learnt, made, folder, copies=settings.data_dir
    )
    plan = Plan(tuple(map(attacks.get, attack_names)), tuple(map(defenses.get, defense_names)), harmful, safe)
    for _ in answer_grid(plan, bench, KeptLines(None, answers)):
        pass
