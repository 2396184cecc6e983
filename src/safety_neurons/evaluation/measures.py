"""What a defense costs: time, ordinary answers, benchmark tasks, and preferences."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.core.files import file_sha256, fingerprint
from safety_neurons.core.plugins import options_of
from safety_neurons.core.records import JsonlCache, Line
from safety_neurons.core.trust import only_recorded
from safety_neurons.engines.engine import InProcess, engine_for, served, uncached, weights_of
from safety_neurons.evaluation.checked import opened
from safety_neurons.evaluation.config import EvaluationConfig
from safety_neurons.evaluation.contracts import EvaluationContext
from safety_neurons.evaluation.defenses import Defense, get
from safety_neurons.evaluation.measured import MeasuredDefense
from safety_neurons.evaluation.summary import UNDEFENDED
from safety_neurons.evaluation.utility.gsm8k import READING, SOLUTION_TOKENS, Solutions, read_problems, solve
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
from safety_neurons.models.identity import path_identity

MEASURES = ("overhead", "utility", "tasks", "gsm8k", "preferences")
# Measures that compare a defense with none.
_RELATIVE = ("overhead", "preferences")
# The time of an answer hardly depends on the prompt; each is answered alone, in every round.
TIMED_PROMPTS = 4
# Length of an answer to an open question.
QUESTION_TOKENS = 256


class CachedMeasure(Line):
    """A row of one measure for one defense, without the names of model and defense: a line of measures.jsonl."""

    found: MeasuredDefense


def check_measures(config: EvaluationConfig) -> None:
    """Raise SafetyNeuronsError where an option has no effect, is not permitted, or names what cannot be used."""
    if not config.tasks and config.task_folder is not None:
        raise SafetyNeuronsError("task_folder belongs to tasks: set evaluate.tasks, too.")
    if not config.tasks and config.gsm8k is None and config.task_limit is not None:
        raise SafetyNeuronsError("task_limit belongs to tasks and gsm8k: set evaluate.tasks or evaluate.gsm8k, too.")
    if config.gsm8k is not None:
        read_problems(config.gsm8k)
    if config.task_folder is not None and only_recorded(config.task_folder):
        raise SafetyNeuronsError(
            f"The settings of this run name a folder of tasks, {config.task_folder}, and tasks can execute code. If "
            "you trust it, name evaluate.task_folder again in this call."
        )
    if config.preference_judge is None and (config.preference_endpoint is not None or config.questions is not None):
        raise SafetyNeuronsError(
            "preference_endpoint and questions belong to preference_judge: set evaluate.preference_judge, too."
        )
    if config.preference_judge is not None and config.preference_endpoint is not None:
        # Fail early on an address that cannot be asked.
        served(config.preference_endpoint, config.preference_judge)
    read_questions(config.questions or BUNDLED)


def measures(
    config: EvaluationConfig, context: EvaluationContext, defenses: Sequence[Defense], ordinary: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """A row per defense for each name in MEASURES, as far as it was asked for and can be measured.

    What the folder holds is not measured again. `ordinary` are safe requests, sent without an attack.
    """
    cache = JsonlCache.read(None if context.folder is None else context.folder / "measures.jsonl", CachedMeasure)
    undefended: list[BaseAnswers] = []
    plain: list[list[Dialogue]] = []
    unaided: list[Solutions] = []

    def base() -> BaseAnswers | None:
        if context.engine.model is not None and not undefended:
            undefended.append(read_base_answers(context, ordinary))
        return undefended[0] if undefended else None

    def dialogues() -> list[Dialogue]:
        if not plain:
            plain.append(_dialogues(config, context, get(UNDEFENDED)))
        return plain[0]

    def solutions() -> Solutions:
        if not unaided:
            unaided.append(_solutions(config, context, get(UNDEFENDED)))
        return unaided[0]

    # By name: whether a measure is wanted, what it depends on besides the context, and how it is made.
    known: dict[str, tuple[bool, list[Any], Callable[[Defense], dict[str, Any]]]] = {
        "overhead": (
            config.overhead > 0,
            [config.overhead, *ordinary[:TIMED_PROMPTS]],
            lambda defense: _time(config.overhead, context, defense, ordinary),
        ),
        "utility": (config.utility, [*ordinary], lambda defense: _utility(context, defense, ordinary, base())),
        "tasks": (
            bool(config.tasks),
            [config.tasks, config.task_limit, path_identity(config.task_folder)],
            lambda defense: _tasks(config, context, defense),
        ),
        "gsm8k": (
            config.gsm8k is not None,
            [None if config.gsm8k is None else file_sha256(config.gsm8k), config.task_limit, SOLUTION_TOKENS, READING],
            lambda defense: _gsm8k(config, context, defense, solutions()),
        ),
        "preferences": (
            config.preference_judge is not None,
            [
                config.preference_judge,
                config.preference_endpoint,
                path_identity(config.preference_judge) if config.preference_endpoint is None else None,
                QUESTION_TOKENS,
                file_sha256(config.questions or BUNDLED) if config.preference_judge else None,
            ],
            lambda defense: _preferences(config, context, defense, dialogues()),
        ),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in MEASURES}
    for defense in defenses:
        for name, (wanted, inputs, make) in known.items():
            if not wanted or (name in _RELATIVE and defense.name == UNDEFENDED):
                continue
            key = fingerprint(name, *_inputs(context, defense), inputs)
            if key not in cache.entries:
                with context.listener.task(f"{context.engine.name}: {name}, defense {defense.name}", 1) as advance:
                    try:
                        cache.add(CachedMeasure(key=key, found=make(defense)))
                    except CannotRunError as error:
                        context.listener.say(f"No {name} of {defense.name}: {error}")
                    advance(1)
            if key in cache.entries:
                row = {"model": context.engine.name, "defense": defense.name}
                found[name].append(row | cache.entries[key].found)
    return found


def _time(rounds: int, context: EvaluationContext, defense: Defense, ordinary: Sequence[str]) -> dict[str, Any]:
    prompts = [AttackedPrompt(text) for text in ordinary[:TIMED_PROMPTS]]
    return asdict(overhead(context, [defense], prompts, rounds)[0])


def _utility(
    context: EvaluationContext, defense: Defense, ordinary: Sequence[str], base: BaseAnswers | None
) -> dict[str, Any]:
    with opened(defense, context) as defended:
        return asdict(utility(context, defended, ordinary, base))


def _tasks(config: EvaluationConfig, context: EvaluationContext, defense: Defense) -> dict[str, Any]:
    model = weights_of(context.engine, "lm-eval")
    with opened(defense, context) as defended:
        # The harness reads the model itself: what else a defense does would not be in its numbers.
        engine = uncached(defended.engine)
        changed = defended.engine.identity != context.engine.identity
        if not isinstance(engine, InProcess) or not (changed or defense.name == UNDEFENDED):
            raise CannotRunError("lm-eval reads the model alone, and this defense works on texts or on the decoding.")
        results = lm_eval(
            model,
            config.tasks,
            limit=config.task_limit,
            include_path=config.task_folder,
            seed=context.seed,
        )
    return {"results": {name: asdict(result) for name, result in results.items()}}


def _gsm8k(config: EvaluationConfig, context: EvaluationContext, defense: Defense, base: Solutions) -> dict[str, Any]:
    is_base = defense.name == UNDEFENDED
    found = base if is_base else _solutions(config, context, defense)
    return {
        "exact_match": asdict(found.exact_match),
        "cut_off": asdict(found.cut_off),
        "difference": None if is_base else asdict(found.difference(base, context.seed)),
    }


def _solutions(config: EvaluationConfig, context: EvaluationContext, defense: Defense) -> Solutions:
    assert config.gsm8k is not None
    with opened(defense, replace(context, answer_tokens=SOLUTION_TOKENS)) as defended:
        return solve(defended, read_problems(config.gsm8k)[: config.task_limit])


def _preferences(
    config: EvaluationConfig, context: EvaluationContext, defense: Defense, plain: Sequence[Dialogue]
) -> dict[str, Any]:
    assert config.preference_judge is not None
    ours = _dialogues(config, context, defense)
    judge = engine_for(config.preference_endpoint, config.preference_judge)
    win_rate = compare_answers(judge, ours, plain, seed=context.seed)
    return {"win_rate": asdict(win_rate), "grades": asdict(grade_answers(judge, ours, seed=context.seed))}


def _dialogues(config: EvaluationConfig, context: EvaluationContext, defense: Defense) -> list[Dialogue]:
    with opened(defense, replace(context, answer_tokens=QUESTION_TOKENS)) as defended:
        return answer_questions(defended, read_questions(config.questions or BUNDLED))


def _inputs(context: EvaluationContext, defense: Defense) -> list[Any]:
    """Everything that a measure of this defense depends on, besides its own options."""
    run = context.artifacts
    return [
        context.engine.identity,
        context.answer_tokens,
        context.seed,
        [defense.name, options_of(defense), defense.version],
        None if run.neurons is None else [indices.tolist() for indices in run.neurons.both],
        None if run.delta is None else run.delta.digest,
        None if run.guard is None else run.guard.digest,
        None if run.corpus is None else [asdict(pair) for pair in run.corpus.pairs],
        [*context.harmful, *context.benign],
    ]
