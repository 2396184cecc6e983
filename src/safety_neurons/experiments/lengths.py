"""Verdicts on longer answers: by how much short answers mislead, cell by cell of the evaluation's grid."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import fingerprint
from safety_neurons.core.progress import Listener
from safety_neurons.core.statistics import Rate, Verdict, paired_difference, rate, rate_of_groups, share
from safety_neurons.engines.engine import CachedEngine, InProcess
from safety_neurons.evaluation.contracts import EvaluationContext
from safety_neurons.evaluation.grid import HARMFUL, JudgedCell, Plan, answer_grid, judge_cells
from safety_neurons.models.chat import Conversation
from safety_neurons.models.generate import Completion, Sampling, complete_to, streamed
from safety_neurons.prompts import Prompt
from safety_neurons.report.results import RunResults
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.evaluation import Evaluator
from safety_neurons.runs.folder import overridden
from safety_neurons.runs.opened import keep_section, opened
from safety_neurons.runs.stages import artifacts_of
from safety_neurons.settings import Settings

TOKENS = (24, 100, 256)
REQUESTS = 20
Verdicts = list[Verdict | None]


@dataclass(frozen=True)
class LongAnswers(InProcess):
    """A model in this process that generates a greedy answer once, to the longest of `lengths`, and cuts it.

    Greedy decoding chooses each token from the ones before it, whatever the limit, so a shorter answer is the beginning
    of a longer one. Answers to the same prompt thus differ by their length alone, and not by the rounding of another
    batch. `generated` holds them by model and prompt.
    """

    lengths: tuple[int, ...] = TOKENS
    generated: dict[tuple[str, str], dict[int, Completion]] = field(default_factory=dict, compare=False)

    @property
    def identity(self) -> str:
        return fingerprint(super().identity, "cut", max(self.lengths))

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        if sampling is not None or max_new_tokens not in self.lengths:
            yield from super().answer(conversations, max_new_tokens=max_new_tokens, sampling=sampling, done=done)
            return
        identity = self.identity
        texts = [self.model.render_conversation(conversation) for conversation in conversations]
        at_hand = frozenset(
            index for index, text in enumerate(texts) if index not in done and (identity, text) in self.generated
        )
        for index in sorted(at_hand):
            yield index, self.generated[identity, texts[index]][max_new_tokens]

        def complete(batch: Sequence[str]) -> list[Completion]:
            answers = complete_to(self.model, batch, self.lengths)
            self.generated.update({(identity, text): found for text, found in zip(batch, answers, strict=True)})
            return [found[max_new_tokens] for found in answers]

        # The batches hold all prompts, so that a resumed experiment rounds alike.
        yield from streamed(
            self.model,
            texts,
            complete,
            max_new_tokens=max(self.lengths),
            batch_size=self.batch_size,
            done=done | at_hand,
        )


def lengths(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    tokens: Sequence[int] = TOKENS,
    requests: int = REQUESTS,
    listener: Listener | None = None,
    command: str = "",
) -> RunResults:
    """Answer a sample of the requests of every evaluated cell at several lengths, and compare the verdicts.

    The cells are those of the run's settings (`evaluate.on`, `evaluate.attacks`, `evaluate.defenses`), the judge is
    `evaluate.judge`. Answers are cached, so a killed experiment resumes. Runs missing stages first. Returns the run's
    results, with the section "lengths".

    Args:
        given: settings that override the run's own.
        tokens: lengths of the answers in tokens; each is compared with the longest.
        requests: size of the sample of each prompt set, or all of a smaller set; all cells of a set have the same
            sample.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    if len(set(tokens)) < 2 or min(tokens) < 1:
        raise SafetyNeuronsError(
            f"Comparing lengths needs at least two of them, in tokens, such as 24 256, not {list(tokens)}."
        )
    if requests < 1:
        raise SafetyNeuronsError(f"The sample needs at least one request, not {requests}.")
    limits = tuple(sorted(set(tokens)))
    with opened(path, given, listener, command, until="tune", uses=("evaluate",)) as run:
        # evaluate.prompts bounds the evaluation, not the sample.
        prompts = max(run.settings.evaluate.prompts, requests)
        changes = {"evaluate": {"prompts": prompts}}
        evaluator = Evaluator.prepare(Settings.checked(overridden(run.settings.model_dump(), changes)))
        evaluator.tell(run.listener)
        plan = _sampled(run, evaluator.plan, requests, limits[-1])
        engine = CachedEngine(
            LongAnswers(run.model, run.settings.batch_size, run.settings.quantize or "", limits), run.engine.cache
        )
        artifacts = artifacts_of(run, run.settings.evaluate.defenses)
        context = evaluator.context(engine, artifacts, run.folder.path, run.listener)
        cells: list[list[JudgedCell]] = []
        with run.listener.task(f"answering at {', '.join(map(str, limits))} tokens", plan.cells) as advance:
            for each in _plans(plan):
                cells += _answered(run, each, context, limits)
                advance(each.cells)
        section = {
            "tokens": list(limits),
            "requests": max(map(len, (plan.harmful, *plan.safe.values()))),
            "on": run.settings.evaluate.on or run.settings.harmful,
            "judge": run.judge.name,
            "cells": [_cell(run, by_length, limits) for by_length in cells],
            "summary": _summary(run, cells, limits),
        }
        return keep_section(run, "lengths", section)


def _sampled(run: RunContext, plan: Plan, requests: int, longest: int) -> Plan:
    """The plan with a sample of each set, of requests that fit the context with the longest answer."""

    def sample(name: str, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
        unfit = run.model.too_long([run.model.render(prompt.text) for prompt in prompts], longest)
        places = [index for index in range(len(prompts)) if index not in unfit]
        if not places:
            raise SafetyNeuronsError(
                f"No request of {name} fits the context of {run.model.name} with an answer of {longest} tokens. Lower "
                "--tokens."
            )
        drawn = random.Random(f"{run.settings.seed} {name}").sample(places, min(requests, len(places)))
        return tuple(prompts[index] for index in sorted(drawn))

    safe = {name: sample(name, prompts) for name, prompts in plan.safe.items()}
    return replace(plan, harmful=sample(HARMFUL, plan.harmful), safe=safe)


def _plans(plan: Plan) -> Iterator[Plan]:
    """A plan for each defense and prompt set, and for each attack: all lengths of one are answered before the next."""
    for defense in plan.defenses:
        for name, prompts in plan.safe.items():
            yield replace(plan, defenses=(defense,), attacks=(), safe={name: prompts})
        for attack in plan.attacks:
            yield replace(plan, defenses=(defense,), attacks=(attack,), safe={})


def _answered(run: RunContext, plan: Plan, context: EvaluationContext, limits: Sequence[int]) -> list[list[JudgedCell]]:
    """The judged cells of a plan, each at all lengths."""
    by_length: dict[int, list[JudgedCell]] = {}
    # The longest first: it generates the others.
    for limit in sorted(limits, reverse=True):
        cells = list(answer_grid(plan, replace(context, answer_tokens=limit)))
        by_length[limit] = judge_cells(cells, [run.judge], run.verdicts, run.listener)
    return [list(cells) for cells in zip(*(by_length[limit] for limit in limits), strict=True)]


def _counted(cell: JudgedCell) -> Verdict:
    """What attacks want of harmful requests, and nobody of safe ones."""
    return "complied" if cell.cell.prompts == HARMFUL else "refused"


def _cell(run: RunContext, by_length: Sequence[JudgedCell], limits: Sequence[int]) -> dict[str, Any]:
    """One cell: the verdicts at each length, and how many of them turn until the longest."""
    cell, counted = by_length[-1].cell, _counted(by_length[-1])
    verdicts = [one.verdicts(run.judge.name) for one in by_length]
    rows = []
    for limit, here in zip(limits, verdicts, strict=True):
        row: dict[str, Any] = {"tokens": limit, "rate": asdict(rate([one for one in here if one], counted))}
        if limit != limits[-1]:
            row |= {
                "to_refused": asdict(_turned(here, verdicts[-1], "refused")),
                "to_complied": asdict(_turned(here, verdicts[-1], "complied")),
            }
        rows.append(row)
    return {
        "defense": cell.defense,
        "attack": cell.attack,
        "prompts": cell.prompts,
        "metric": "attack success" if counted == "complied" else "refused",
        "reason": next((one.cell.reason for one in by_length if one.cell.reason), ""),
        "lengths": rows,
    }


def _turned(short: Verdicts, long: Verdicts, into: Verdict) -> Rate:
    """The fraction of answers, judged at both lengths, whose verdict only the longer one makes `into`."""
    pairs = [(one, other) for one, other in zip(short, long, strict=True) if one is not None and other is not None]
    return share([None if "unscored" in pair else pair[0] != into and pair[1] == into for pair in pairs])


def _summary(run: RunContext, cells: Sequence[Sequence[JudgedCell]], limits: Sequence[int]) -> list[dict[str, Any]]:
    """For each defense, the mean over attacks and the rate on each safe set at each length, and minus the longest's."""
    rows = []
    groups: dict[tuple[str, str], list[Sequence[JudgedCell]]] = {}
    for by_length in cells:
        if not by_length[-1].cell.reason:
            groups.setdefault((by_length[-1].cell.defense, by_length[-1].cell.prompts), []).append(by_length)
    for (defense, prompts), group in groups.items():
        counted, seed = _counted(group[0][-1]), run.settings.seed
        verdicts = [[one[place].verdicts(run.judge.name) for one in group] for place in range(len(limits))]
        for limit, here in zip(limits, verdicts, strict=True):
            found = rate_of_groups(here, counted, seed)
            row = {"defense": defense, "prompts": prompts, "tokens": limit, "cells": len(group), "rate": asdict(found)}
            if limit != limits[-1]:
                row["difference"] = asdict(paired_difference(here, verdicts[-1], counted, seed))
            rows.append(row)
    return rows
