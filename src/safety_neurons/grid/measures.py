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

MEASURES = ("overhead", "utility", "tasks")
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
) -> dict[str, list[dict[str, Any]]]:
    """By the names of MEASURES a row a defence, as far as they were asked for and can be had.

    What was measured already is not measured again. `ordinary` are safe requests, asked as they are.
    """
    undefended: list[Untouched] = []

    def untouched() -> Untouched | None:
        if bench.engine.model is not None and not undefended:
            undefended.append(read_untouched(bench, ordinary))
        return undefended[0] if undefended else None

    measure: dict[str, tuple[bool, Callable[[Defense], dict[str, Any]]]] = {
        "overhead": (extras.rounds > 0, lambda defense: _time(extras.rounds, bench, defense, ordinary)),
        "utility": (extras.utility, lambda defense: _utility(bench, defense, ordinary, untouched())),
        "tasks": (bool(extras.tasks), lambda defense: _tasks(extras, bench, defense)),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in MEASURES}
    for defense in defenses:
        for name, (wanted, job) in measure.items():
            if not wanted or (name == "overhead" and defense.name == UNDEFENDED):
                continue
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
            if key not in kept.by_key:
                with bench.listener.task(f"{bench.engine.name}: {name}, defence {defense.name}", 1) as advance:
                    try:
                        kept.add(key, {"found": job(defense)})
                    except CannotRun as error:
                        bench.listener.say(f"No {name} of {defense.name}: {error}")
                    advance(1)
            if key in kept.by_key:
                row = {"model": bench.engine.name, "defense": defense.name}
                found[name].append(row | kept.by_key[key]["found"])
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
    return {"results": {name: asdict(result) for name, result in results.items()}}
