"""What a defence costs besides its verdicts: time, how ordinary answers look, and what benchmarks say."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safety_neurons.attacks import AttackedPrompt
from safety_neurons.defenses import Defense
from safety_neurons.engines.bench import Bench
from safety_neurons.engines.engine import weights_of
from safety_neurons.errors import CannotRun
from safety_neurons.evaluate.grid import made_digests
from safety_neurons.evaluate.lm_eval_tasks import lm_eval
from safety_neurons.evaluate.overhead import overhead
from safety_neurons.evaluate.utility import Untouched, read_untouched, utility
from safety_neurons.grid.standings import UNDEFENDED
from safety_neurons.kept_lines import KeptLines
from safety_neurons.plugins import options_of
from safety_neurons.storage import fingerprint

# The time of an answer hardly depends on the prompt; each is answered alone, in every round.
TIMED_PROMPTS = 4


@dataclass(frozen=True)
class Extras:
    """What is measured beside the grid; nothing unless it is asked for.

    `rounds` are of the time that each defence takes, `tasks` names of lm-eval's, `task_limit` how many documents of
    each, `task_folder` a folder with tasks of the user's.
    """

    rounds: int = 0
    utility: bool = False
    tasks: Sequence[str] = ()
    task_limit: int | None = None
    task_folder: Path | None = None


def measures(
    extras: Extras, bench: Bench, defenses: Sequence[Defense], ordinary: Sequence[str], kept: KeptLines
) -> list[dict[str, Any]]:
    """One entry a defence: `overhead`, `utility` and `tasks`, as far as they were asked for and can be had.

    What was measured already is not measured again. `ordinary` are safe requests, asked as they are.
    """
    undefended: list[Untouched] = []

    def untouched() -> Untouched | None:
        if bench.engine.model is not None and not undefended:
            undefended.append(read_untouched(bench, ordinary))
        return undefended[0] if undefended else None

    found = []
    for defense in defenses:
        entry: dict[str, Any] = {"model": bench.engine.name, "defense": defense.name}
        jobs: dict[str, Callable[[], Any]] = {}
        if extras.rounds and defense.name != UNDEFENDED:
            jobs["overhead"] = lambda one=defense: _time(extras.rounds, bench, one, ordinary)  # type: ignore[misc]
        if extras.utility:
            jobs["utility"] = lambda one=defense: _utility(bench, one, ordinary, untouched())  # type: ignore[misc]
        if extras.tasks:
            jobs["tasks"] = lambda one=defense: _tasks(extras, bench, one)  # type: ignore[misc]
        for name, job in jobs.items():
            key = fingerprint(
                name,
                bench.engine.identity,
                bench.answer_tokens,
                bench.seed,
                made_digests(bench),
                [defense.name, options_of(defense)],
                asdict(extras),
                list(ordinary),
            )
            line = kept.by_key.get(key)
            if line is None:
                with bench.listener.task(f"{bench.engine.name}: {name}, defence {defense.name}", 1) as advance:
                    try:
                        line = kept.add(key, {"found": job()})
                    except CannotRun as error:
                        line = {"found": {"reason": str(error)}}
                    advance(1)
            entry[name] = line["found"]
        found.append(entry)
    return found


def _time(rounds: int, bench: Bench, defense: Defense, ordinary: Sequence[str]) -> dict[str, Any]:
    prompts = [AttackedPrompt(text) for text in ordinary[:TIMED_PROMPTS]]
    return asdict(overhead(bench, [defense], prompts, rounds)[0])


def _utility(bench: Bench, defense: Defense, ordinary: Sequence[str], untouched: Untouched | None) -> dict[str, Any]:
    with defense.opened(bench) as defended:
        return asdict(utility(bench, defended, ordinary, untouched))


def _tasks(extras: Extras, bench: Bench, defense: Defense) -> dict[str, Any]:
    model = weights_of(bench.engine, "lm-eval")
    with defense.opened(bench):
        results = lm_eval(
            model,
            extras.tasks,
            limit=extras.task_limit,
            include_path=extras.task_folder,
            seed=bench.seed,
        )
    return {name: asdict(result) for name, result in results.items()}
