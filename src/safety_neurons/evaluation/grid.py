"""The grid: every attack against every defense on the same requests, and what each defense does to safe ones."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from safety_neurons.core.errors import CannotRunError
from safety_neurons.core.progress import Listener
from safety_neurons.core.records import JsonlCache
from safety_neurons.core.statistics import Verdict
from safety_neurons.evaluation import checked
from safety_neurons.evaluation.contracts import (
    Attack,
    Defended,
    Defense,
    EvaluationContext,
    Judge,
    JudgeInput,
    Judgment,
    Response,
)
from safety_neurons.evaluation.judging import CachedVerdict, judge_inputs
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.prompts import Prompt

# Safe requests are sent without an attack.
DIRECT = "direct"
HARMFUL = "harmful"


@dataclass(frozen=True)
class Plan:
    """What is compared: attacks on `harmful` requests, and `safe` requests by the name of their set."""

    attacks: tuple[Attack, ...]
    defenses: tuple[Defense, ...]
    harmful: tuple[Prompt, ...]
    safe: Mapping[str, tuple[Prompt, ...]]

    @property
    def cells(self) -> int:
        return len(self.defenses) * (len(self.attacks) + len(self.safe))


@dataclass(frozen=True)
class Cell:
    """One model behind one defense under one attack: a response for each request, None where nothing was sent.

    `reason` says why there is none, where the cell could not be run.
    """

    model: str
    defense: str
    attack: str
    prompts: str
    requests: tuple[Prompt, ...]
    responses: tuple[Response | None, ...]
    reason: str = ""


@dataclass(frozen=True)
class JudgedCell:
    """A cell, and each judge's judgments, by the judge's name: None where there is no response."""

    cell: Cell
    judgments: Mapping[str, tuple[Judgment | None, ...]]

    def verdicts(self, judge: str) -> list[Verdict | None]:
        return [None if one is None else one.verdict for one in self.judgments[judge]]


def answer_grid(plan: Plan, context: EvaluationContext) -> Iterator[Cell]:
    """Every cell of one model, as it is finished. The engine's cache repeats no answer of a killed grid."""
    safe = [(None, name, requests) for name, requests in plan.safe.items()]
    plain = [(attack, HARMFUL, plan.harmful) for attack in plan.attacks if not attack.changes_model]
    for defense in plan.defenses:
        if safe or plain:
            yield from _cells(defense, context, [*safe, *plain])
        for attack in plan.attacks:
            if attack.changes_model:
                yield from _cells(defense, context, [(attack, HARMFUL, plan.harmful)])


def _cells(
    defense: Defense,
    context: EvaluationContext,
    asked: Sequence[tuple[Attack | None, str, tuple[Prompt, ...]]],
) -> Iterator[Cell]:
    """The cells of one defense, which is opened once for all of them."""
    with contextlib.ExitStack() as stack:
        defended: Defended | None = None
        reason = ""
        try:
            for attack, _, _ in asked:
                if attack is not None and attack.changes_model:
                    # What the defense learns of the model it learns before the attack changes the model.
                    defense = defense.prepared(context)
                    context = stack.enter_context(attack.surrounding(context))
            defended = stack.enter_context(checked.opened(defense, context))
        except CannotRunError as error:
            reason = str(error)
        for attack, name, requests in asked:
            attack_name = DIRECT if attack is None else attack.name
            responses: tuple[Response | None, ...] = (None,) * len(requests)
            said = reason
            if defended is not None:
                title = f"{context.engine.name}: {attack_name} on {name}, defense {defense.name}"
                with context.listener.task(title, 1) as advance:
                    try:
                        responses = _responses(defended, attack, [request.text for request in requests], context)
                    except CannotRunError as error:
                        said = str(error)
                    advance(1)
            yield Cell(context.engine.name, defense.name, attack_name, name, requests, responses, said)


def _responses(
    defended: Defended, attack: Attack | None, requests: Sequence[str], context: EvaluationContext
) -> tuple[Response | None, ...]:
    sent: Sequence[AttackedPrompt | None] = (
        [AttackedPrompt(request) for request in requests]
        if attack is None
        else checked.attacked(attack, requests, defended, context)
    )
    responses: Sequence[Response] = defended.respond([prompt for prompt in sent if prompt is not None])
    given = iter(responses if attack is None else checked.returned(attack, responses, defended, context))
    return tuple(None if prompt is None else next(given) for prompt in sent)


def judge_cells(
    cells: Sequence[Cell], judges: Sequence[Judge], verdicts: JsonlCache[CachedVerdict], listener: Listener
) -> list[JudgedCell]:
    """All judges on all cells. A judge reads the plain request, not what an attack made of it."""
    inputs = {
        (place, index): JudgeInput(request.text, response.text, response.unscored)
        for place, cell in enumerate(cells)
        for index, (request, response) in enumerate(zip(cell.requests, cell.responses, strict=True))
        if response is not None and response.outcome != "not run"
    }
    found = {
        judge.name: dict(zip(inputs, judge_inputs(judge, list(inputs.values()), verdicts, listener), strict=True))
        for judge in judges
    }
    return [
        JudgedCell(
            cell,
            {
                name: tuple(judgments.get((place, index)) for index in range(len(cell.requests)))
                for name, judgments in found.items()
            },
        )
        for place, cell in enumerate(cells)
    ]
