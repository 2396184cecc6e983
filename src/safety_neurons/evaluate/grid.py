"""The grid: every attack against every defence on the same requests, and what each defence does to safe ones.

What is answered is kept cell by cell, and answer by answer by the engine: a killed grid repeats nothing.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safety_neurons.attacks import Attack, AttackedPrompt
from safety_neurons.defenses import Defended, Defense, Response
from safety_neurons.engines.bench import Bench
from safety_neurons.errors import CannotRun
from safety_neurons.kept_lines import KeptLines
from safety_neurons.models.weights import file_sha256
from safety_neurons.plugins import options_of, wording
from safety_neurons.prompts import Prompt
from safety_neurons.storage import fingerprint

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
    """One model behind one defence under one attack: an answer for each request, None where nothing was sent.

    `reason` says why there are none, where it could not be run.
    """

    model: str
    defense: str
    attack: str
    prompts: str
    requests: tuple[Prompt, ...]
    responses: tuple[Response | None, ...]
    reason: str = ""


def answer_grid(plan: Plan, bench: Bench, kept: KeptLines) -> Iterator[Cell]:
    """Every cell of one model, as it is finished."""
    for defense in plan.defenses:
        with contextlib.ExitStack() as stack:
            opened = _Opened(defense, bench, stack)
            for name, requests in plan.safe.items():
                yield _cell(plan, opened, kept, None, name, requests)
            for attack in plan.attacks:
                if type(attack).surrounding is Attack.surrounding:
                    yield _cell(plan, opened, kept, attack, HARMFUL, plan.harmful)
        for attack in plan.attacks:
            if type(attack).surrounding is not Attack.surrounding:
                with contextlib.ExitStack() as stack:
                    yield _cell(plan, _Opened(defense, bench, stack, attack), kept, attack, HARMFUL, plan.harmful)


@dataclass
class _Opened:
    """A defence that is opened when it is first needed: what is kept already needs no model."""

    defense: Defense
    bench: Bench
    stack: contextlib.ExitStack
    around: Attack | None = None
    _defended: Defended | None = None

    def defended(self) -> Defended:
        if self._defended is None:
            bench, defense = self.bench, self.defense
            if self.around is not None:
                # What it learns of the model it learns before the attack changes the model.
                defense = defense.prepared(bench)
                bench = self.stack.enter_context(self.around.surrounding(bench))
            self._defended = self.stack.enter_context(defense.opened(bench))
        return self._defended


def _cell(
    plan: Plan, opened: _Opened, kept: KeptLines, attack: Attack | None, name: str, requests: Sequence[Prompt]
) -> Cell:
    bench, defense = opened.bench, opened.defense
    attack_name = DIRECT if attack is None else attack.name
    key = fingerprint(
        *depends_on(bench, defense),
        None
        if attack is None
        else [attack.name, options_of(attack), wording("safety_neurons.attacks"), *map(_content, attack.reads(bench))],
        # Only what changes the model takes the run's strength.
        *([] if opened.around is None else [bench.made.alpha_conformity]),
        [request.text for request in requests],
    )
    line = kept.by_key.get(key)
    if line is None:
        title = f"{bench.engine.name}: {attack_name} on {name}, defence {defense.name}"
        with bench.listener.task(title, 1) as advance:
            line = _answered(opened, attack, [request.text for request in requests])
            advance(1)
        # What cannot be run today may be tomorrow.
        if not line["reason"]:
            kept.add(key, line)
    responses = tuple(None if one is None else Response(*one) for one in line["responses"])
    return Cell(
        bench.engine.name,
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
            else attack.prompts(requests, defended, opened.bench)
        )
        responses: Sequence[Response] = defended.respond([prompt for prompt in sent if prompt is not None])
        given = iter(responses if attack is None else attack.returned(responses, defended, opened.bench))
        return {"responses": [None if prompt is None else next(given) for prompt in sent], "reason": ""}
    except CannotRun as error:
        return {"responses": [], "reason": str(error)}


def _content(path: Path) -> str | None:
    """A name for what is in a file; None where there is none, which is an error when it is read."""
    return file_sha256(path) if path.is_file() else None


def depends_on(bench: Bench, defense: Defense) -> list[Any]:
    """Names for all that whatever is said behind this defence depends on, besides what is asked."""
    return [
        bench.engine.identity,
        bench.answer_tokens,
        bench.seed,
        _made_digests(bench),
        [defense.name, options_of(defense), wording("safety_neurons.defenses")],
    ]


def _made_digests(bench: Bench) -> list[Any]:
    """Names for exactly the artefacts that attacks and defences may draw on."""
    made = bench.made
    return [
        None if made.neurons is None else [site.tolist() for site in made.neurons.both],
        None if made.delta is None else made.delta.digest,
        None if made.guard is None else [made.guard.layer, made.guard.threshold, made.guard.alpha],
        None if made.corpus is None else [asdict(pair) for pair in made.corpus.pairs],
        [*bench.harmful, *bench.benign],
    ]
