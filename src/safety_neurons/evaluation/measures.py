"""What a defense costs besides its verdicts: time, how ordinary answers look, and what benchmarks say."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.core.files import JsonlCache, file_sha256, fingerprint
from safety_neurons.engines.engine import InProcess, engine_for, uncached, weights_of
from safety_neurons.evaluation.contracts import EvaluationContext
from safety_neurons.evaluation.defenses import Defense, get
from safety_neurons.evaluation.grid import depends_on
from safety_neurons.evaluation.summary import UNDEFENDED
from safety_neurons.evaluation.utility.lm_eval import lm_eval
from safety_neurons.evaluation.utility.ordinary import BaseAnswers, read_base_answers, utility
from safety_neurons.evaluation.utility.overhead import overhead
from safety_neurons.evaluation.utility.preferences import (
    BUNDLED,
    Dialogue,
    answer_questions,
    compare_answers,
    grade_answers,
    read_questions,
)
from safety_neurons.models.chat import AttackedPrompt

MEASURES = ("overhead", "utility", "tasks", "preferences")
# What says how a defense compares with none.
_RELATIVE = ("overhead", "preferences")
# The time of an answer hardly depends on the prompt; each is answered alone, in every round.
TIMED_PROMPTS = 4


@dataclass(frozen=True)
class Extras:
    """What is measured beside the grid; nothing unless it is asked for.

    `rounds` are of the time that each defense takes, `tasks` names of lm-eval's for the defenses that change the model,
    `task_limit` how many documents of each, `task_folder` a folder with tasks of the user's. `preference_judge` is the
    model that says whose answers to open `questions` are better, the defense's or the undefended model's: at
    `preference_endpoint`, or loaded here.
    """

    rounds: int = 0
    utility: bool = False
    tasks: Sequence[str] = ()
    task_limit: int | None = None
    task_folder: Path | None = None
    preference_judge: str | None = None
    preference_endpoint: str | None = None
    questions: Path = BUNDLED
    question_tokens: int = 256

    def __post_init__(self) -> None:
        """Raises SafetyNeuronsError where an option would have no effect, or a file with questions cannot be read."""
        if not self.tasks and (self.task_limit is not None or self.task_folder is not None):
            raise SafetyNeuronsError("--task-limit and --task-folder are for --tasks: name the tasks of lm-eval, too.")
        if self.preference_judge is None and (self.preference_endpoint is not None or self.questions != BUNDLED):
            raise SafetyNeuronsError(
                "--preference-endpoint and --questions are for --preference-judge: name the model that judges, too."
            )
        read_questions(self.questions)


def measures(
    extras: Extras, context: EvaluationContext, defenses: Sequence[Defense], ordinary: Sequence[str], kept: JsonlCache
) -> dict[str, list[dict[str, Any]]]:
    """By the names of MEASURES a row a defense, as far as they were asked for and can be had.

    What was measured already is not measured again. `ordinary` are safe requests, asked as they are.
    """
    undefended: list[BaseAnswers] = []
    plain: list[list[Dialogue]] = []

    def base() -> BaseAnswers | None:
        if context.engine.model is not None and not undefended:
            undefended.append(read_base_answers(context, ordinary))
        return undefended[0] if undefended else None

    def dialogues() -> list[Dialogue]:
        if not plain:
            plain.append(_dialogues(extras, context, get(UNDEFENDED)))
        return plain[0]

    # By its name whether a measure is wanted, what it depends on besides the bench, and how it is made.
    known: dict[str, tuple[bool, list[Any], Callable[[Defense], dict[str, Any]]]] = {
        "overhead": (
            extras.rounds > 0,
            [extras.rounds, *ordinary[:TIMED_PROMPTS]],
            lambda defense: _time(extras.rounds, context, defense, ordinary),
        ),
        "utility": (extras.utility, [*ordinary], lambda defense: _utility(context, defense, ordinary, base())),
        "tasks": (
            bool(extras.tasks),
            [extras.tasks, extras.task_limit, extras.task_folder and _files(extras.task_folder)],
            lambda defense: _tasks(extras, context, defense),
        ),
        "preferences": (
            extras.preference_judge is not None,
            [
                extras.preference_judge,
                extras.preference_endpoint,
                extras.question_tokens,
                file_sha256(extras.questions) if extras.preference_judge else None,
            ],
            lambda defense: _preferences(extras, context, defense, dialogues()),
        ),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in MEASURES}
    for defense in defenses:
        for name, (wanted, inputs, make) in known.items():
            if not wanted or (name in _RELATIVE and defense.name == UNDEFENDED):
                continue
            key = fingerprint(name, *depends_on(context, defense), inputs)
            if key not in kept.entries:
                with context.listener.task(f"{context.engine.name}: {name}, defense {defense.name}", 1) as advance:
                    try:
                        kept.add(key, {"found": make(defense)})
                    except CannotRunError as error:
                        context.listener.say(f"No {name} of {defense.name}: {error}")
                    advance(1)
            if key in kept.entries:
                row = {"model": context.engine.name, "defense": defense.name}
                found[name].append(row | kept.entries[key]["found"])
    return found


def _time(rounds: int, context: EvaluationContext, defense: Defense, ordinary: Sequence[str]) -> dict[str, Any]:
    prompts = [AttackedPrompt(text) for text in ordinary[:TIMED_PROMPTS]]
    return asdict(overhead(context, [defense], prompts, rounds)[0])


def _utility(
    context: EvaluationContext, defense: Defense, ordinary: Sequence[str], base: BaseAnswers | None
) -> dict[str, Any]:
    with defense.opened(context) as defended:
        return asdict(utility(context, defended, ordinary, base))


def _tasks(extras: Extras, context: EvaluationContext, defense: Defense) -> dict[str, Any]:
    model = weights_of(context.engine, "lm-eval")
    with defense.opened(context) as defended:
        # The harness reads the model itself: what else a defense does would not be in its numbers.
        engine = uncached(defended.engine)
        changed = defended.engine.identity != context.engine.identity
        if not isinstance(engine, InProcess) or not (changed or defense.name == UNDEFENDED):
            raise CannotRunError("lm-eval reads the model alone, and this defense works on texts or on the decoding.")
        results = lm_eval(
            model,
            extras.tasks,
            limit=extras.task_limit,
            include_path=extras.task_folder,
            seed=context.seed,
        )
    return {"results": {name: asdict(result) for name, result in results.items()}}


def _preferences(
    extras: Extras, context: EvaluationContext, defense: Defense, plain: Sequence[Dialogue]
) -> dict[str, Any]:
    assert extras.preference_judge is not None
    ours = _dialogues(extras, context, defense)
    judge = engine_for(extras.preference_endpoint, extras.preference_judge)
    win_rate = compare_answers(judge, ours, plain, seed=context.seed)
    return {"win_rate": asdict(win_rate), "grades": asdict(grade_answers(judge, ours, seed=context.seed))}


def _files(folder: Path) -> list[list[str]]:
    """Each file of a folder with tasks, and a name for what is in it."""
    return [[str(path), file_sha256(path)] for path in sorted(folder.rglob("*")) if path.is_file()]


def _dialogues(extras: Extras, context: EvaluationContext, defense: Defense) -> list[Dialogue]:
    with defense.opened(replace(context, answer_tokens=extras.question_tokens)) as defended:
        return answer_questions(defended, read_questions(extras.questions))
