"""The grid: every attack against every defense on the same requests, and what each defense does to safe ones.

What is answered is kept cell by cell, and answer by answer by the engine: a killed grid repeats nothing.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import CannotRunError
from safety_neurons.core.files import JsonlCache, file_sha256, fingerprint
from safety_neurons.core.plugins import options_of
from safety_neurons.evaluation.attacks import Attack
from safety_neurons.evaluation.contracts import EvaluationContext
from safety_neurons.evaluation.defenses import Defended, Defense, Response
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.prompts import Prompt

# Safe requests are asked as they are.
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
    """One model behind one defense under one attack: an answer for each request, None where nothing was sent.

    `reason` says why there are none, where it could not be run.
    """

    model: str
    defense: str
    attack: str
    prompts: str
    requests: tuple[Prompt, ...]
    responses: tuple[Response | None, ...]
    reason: str = ""


def answer_grid(plan: Plan, context: EvaluationContext, kept: JsonlCache) -> Iterator[Cell]:
    """Every cell of one model, as it is finished."""
    for defense in plan.defenses:
        with contextlib.ExitStack() as stack:
            opened = _Opened(defense, context, stack)
            for name, requests in plan.safe.items():
                yield _cell(plan, opened, kept, None, name, requests)
            for attack in plan.attacks:
                if not attack.changes_model:
                    yield _cell(plan, opened, kept, attack, HARMFUL, plan.harmful)
        for attack in plan.attacks:
            if attack.changes_model:
                with contextlib.ExitStack() as stack:
                    yield _cell(plan, _Opened(defense, context, stack, attack), kept, attack, HARMFUL, plan.harmful)


@dataclass
class _Opened:
    """A defense that is opened when it is first needed: what is kept already needs no model."""

    defense: Defense
    context: EvaluationContext
    stack: contextlib.ExitStack
    around: Attack | None = None
    _defended: Defended | None = None

    def defended(self) -> Defended:
        if self._defended is None:
            context, defense = self.context, self.defense
            if self.around is not None:
                # What it learns of the model it learns before the attack changes the model.
                defense = defense.prepared(context)
                context = self.stack.enter_context(self.around.surrounding(context))
            self._defended = self.stack.enter_context(defense.opened(context))
        return self._defended


def _cell(
    plan: Plan, opened: _Opened, kept: JsonlCache, attack: Attack | None, name: str, requests: Sequence[Prompt]
) -> Cell:
    context, defense = opened.context, opened.defense
    attack_name = DIRECT if attack is None else attack.name
    key = fingerprint(
        *depends_on(context, defense),
        None
        if attack is None
        else [attack.name, options_of(attack), attack.version, *map(_content, attack.reads(context))],
        # Only what changes the model takes the run's strength.
        *([] if opened.around is None else [context.artifacts.alpha_conformity]),
        [request.text for request in requests],
    )
    line = kept.entries.get(key)
    if line is None:
        title = f"{context.engine.name}: {attack_name} on {name}, defense {defense.name}"
        with context.listener.task(title, 1) as advance:
            line = _answered(opened, attack, [request.text for request in requests])
            advance(1)
        # What cannot be run today may be tomorrow.
        if not line["reason"]:
            kept.add(key, line)
    responses = tuple(None if one is None else Response(*one) for one in line["responses"])
    return Cell(
        context.engine.name,
        defense.name,
        attack_name,
        name,
        tuple(requests),
        responses or (None,) * len(requests),
        line["reason"],
    )


def _answered(opened: _Opened, attack: Attack | None, requests: Sequence[str]) -> dict[str, Any]:
    try:
        defended = opened.defended()
        sent: Sequence[AttackedPrompt | None] = (
            [AttackedPrompt(request) for request in requests]
            if attack is None
            else attack.prompts(requests, defended, opened.context)
        )
        responses: Sequence[Response] = defended.respond([prompt for prompt in sent if prompt is not None])
        given = iter(responses if attack is None else attack.returned(responses, defended, opened.context))
        return {"responses": [None if prompt is None else next(given) for prompt in sent], "reason": ""}
    except CannotRunError as error:
        return {"responses": [], "reason": str(error)}


def _content(path: Path) -> str | None:
    """A name for what is in a file; None where there is none, which is an error when it is read."""
    return file_sha256(path) if path.is_file() else None


def depends_on(context: EvaluationContext, defense: Defense) -> list[Any]:
    """Names for all that whatever is said behind this defense depends on, besides what is asked."""
    return [
        context.engine.identity,
        context.answer_tokens,
        context.seed,
        _made_digests(context),
        [defense.name, options_of(defense), defense.version],
    ]


def _made_digests(context: EvaluationContext) -> list[Any]:
    """Names for exactly the artifacts that attacks and defenses may draw on."""
    made = context.artifacts
    return [
        None if made.neurons is None else [hook_point.tolist() for hook_point in made.neurons.both],
        None if made.delta is None else made.delta.digest,
        None if made.guard is None else [made.guard.layer, made.guard.threshold, made.guard.alpha],
        None if made.corpus is None else [asdict(pair) for pair in made.corpus.pairs],
        [*context.harmful, *context.benign],
    ]
