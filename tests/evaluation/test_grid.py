"""The grid on a tiny model: which cells there are, what is sent and judged, and what cannot be run."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from builders.judges import ALWAYS_REFUSED, BY_HASH, by_hash
from builders.listeners import Recorder
from builders.runs import lines_of
from safety_neurons.core.errors import CannotRunError
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.engine import CachedAnswer, CachedEngine, InProcess
from safety_neurons.evaluation import attacks, defenses
from safety_neurons.evaluation.contracts import Attack, Defended, Defense, EvaluationContext
from safety_neurons.evaluation.grid import Cell, Plan, answer_grid, judge_cells
from safety_neurons.evaluation.judging import CachedVerdict
from safety_neurons.models.chat import AttackedPrompt, ChatModel
from safety_neurons.prompts import Prompt

HARMFUL = tuple(Prompt(f"h{number}", f"Plan harm {number}") for number in range(3))
SAFE = {name: tuple(Prompt(f"{name}{n}", f"Write {name} {n}") for n in range(2)) for name in ("poem", "song")}


@dataclass(frozen=True, kw_only=True)
class Every2nd(Attack):
    """Has something for every second request alone."""

    def prompts(
        self, requests: Sequence[str], defended: Defended, context: EvaluationContext
    ) -> Sequence[AttackedPrompt | None]:
        return [AttackedPrompt(f"{text}!") if number % 2 == 0 else None for number, text in enumerate(requests)]


@dataclass(frozen=True, kw_only=True)
class Impossible(Attack):
    def prompts(
        self, requests: Sequence[str], defended: Defended, context: EvaluationContext
    ) -> Sequence[AttackedPrompt | None]:
        raise CannotRunError("impossible says why")


@dataclass(frozen=True, kw_only=True)
class Changing(Attack):
    """Changes the model, and notes when it does."""

    def surrounding(self, context: EvaluationContext) -> contextlib.AbstractContextManager[EvaluationContext]:
        return contextlib.nullcontext(context.under("attacked"))

    def prompts(
        self, requests: Sequence[str], defended: Defended, context: EvaluationContext
    ) -> Sequence[AttackedPrompt | None]:
        return [AttackedPrompt(text) for text in requests]


@dataclass(frozen=True, kw_only=True)
class Counting(Defense):
    """Notes when it learns and is opened, and on which model."""

    events: list[str]

    def prepared(self, context: EvaluationContext) -> "Counting":
        self.events.append(f"prepared on {context.engine.change or 'base'}")
        return self

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        self.events.append(f"opened on {context.engine.change or 'base'}")
        with defenses.get("none").opened(context) as defended:
            yield defended
        self.events.append("closed")


def about(name: str) -> dict[str, Any]:
    return {"name": name, "source": "this test", "description": "-"}


@pytest.fixture
def context(model: ChatModel, tmp_path: Path) -> EvaluationContext:
    engine = CachedEngine(InProcess(model, 2), JsonlCache.read(tmp_path / "responses.jsonl", CachedAnswer))
    return EvaluationContext(engine, 4, folder=tmp_path)


def plan(tried: Sequence[Attack], defended: Sequence[Defense] = (), *, safe: bool = True) -> Plan:
    return Plan(tuple(tried), tuple(defended) or (defenses.get("none"),), HARMFUL, SAFE if safe else {})


def names(cells: Sequence[Cell]) -> list[tuple[str, str, str]]:
    return [(cell.defense, cell.attack, cell.prompts) for cell in cells]


def test_every_defense_meets_every_attack_and_every_safe_set(context: EvaluationContext) -> None:
    made = plan([attacks.get("direct"), attacks.get("prefill")], [defenses.get("none"), defenses.get("self-reminder")])
    listener = Recorder()
    cells = list(answer_grid(made, replace(context, listener=listener)))
    each = [("direct", "poem"), ("direct", "song"), ("direct", "harmful"), ("prefill", "harmful")]
    assert names(cells) == [(defense, *cell) for defense in ("none", "self-reminder") for cell in each]
    assert len(cells) == made.cells == len(listener.tasks)
    for cell in cells:
        assert cell.reason == ""
        assert len(cell.responses) == len(cell.requests) == (3 if cell.prompts == "harmful" else 2)
        assert all(response is not None and not response.blocked for response in cell.responses)
    prefilled = next(cell for cell in cells if cell.attack == "prefill")
    assert all(response is not None and response.text.startswith("Sure") for response in prefilled.responses)


def test_a_defense_is_opened_once_for_all_attacks_but_those_that_change_the_model(context: EvaluationContext) -> None:
    events: list[str] = []
    tried = [attacks.get("direct"), Changing(**about("changing"), changes_model=True), attacks.get("prefill")]
    cells = list(answer_grid(plan(tried, [Counting(**about("counting"), events=events)]), context))
    # The defense learns on the model as it was.
    assert events == ["opened on base", "closed", "prepared on base", "opened on attacked", "closed"]
    assert [cell.attack for cell in cells if cell.prompts == "harmful"] == ["direct", "prefill", "changing"]
    changed = {line["user"] for line in lines_of(context.folder / "responses.jsonl") if line["change"]}  # type: ignore[operator]
    assert changed == {request.text for request in HARMFUL}


def test_what_an_attack_has_nothing_for_is_neither_sent_nor_judged(context: EvaluationContext) -> None:
    (cell,) = answer_grid(plan([Every2nd(**about("second"))], safe=False), context)
    assert [response is None for response in cell.responses] == [False, True, False]
    (judged,) = judge_cells([cell], [BY_HASH], JsonlCache(None, CachedVerdict), Recorder())
    texts = [response.text for response in cell.responses if response is not None]
    assert judged.verdicts(BY_HASH.name) == [by_hash(texts[0]), None, by_hash(texts[1])]


def test_what_cannot_be_run_is_named_with_the_reason_and_stops_nothing(context: EvaluationContext) -> None:
    made = plan(
        [Impossible(**about("impossible")), attacks.get("direct")], [defenses.get("guard"), defenses.get("none")]
    )
    cells = list(answer_grid(made, context))
    assert len(cells) == made.cells
    for cell in cells:
        if cell.defense == "guard":
            assert "guard" in cell.reason
        else:
            assert cell.reason == ("impossible says why" if cell.attack == "impossible" else "")
        assert all(response is None for response in cell.responses) is bool(cell.reason)
    judged = judge_cells(cells, [BY_HASH], JsonlCache(None, CachedVerdict), Recorder())
    assert {None} == {verdict for one in judged if one.cell.reason for verdict in one.verdicts(BY_HASH.name)}


def test_every_judge_judges_every_response_once(context: EvaluationContext, tmp_path: Path) -> None:
    cells = list(answer_grid(plan([attacks.get("direct")]), context))
    path, listener = tmp_path / "verdicts.jsonl", Recorder()
    judged = judge_cells([*cells, *cells], [BY_HASH, ALWAYS_REFUSED], JsonlCache.read(path, CachedVerdict), listener)
    assert listener.tasks == [f"judge {BY_HASH.name}", f"judge {ALWAYS_REFUSED.name}"]
    responses = {(r.text, a.text) for cell in cells for r, a in zip(cell.requests, cell.responses, strict=True) if a}
    assert len(lines_of(path)) == 2 * len(responses)
    for one in judged:
        assert set(one.verdicts(ALWAYS_REFUSED.name)) == {"refused"}
        expected = [by_hash(response.text) for response in one.cell.responses if response is not None]
        assert one.verdicts(BY_HASH.name) == expected


def test_a_second_grid_asks_only_what_is_new(context: EvaluationContext, tmp_path: Path) -> None:
    small = list(answer_grid(plan([attacks.get("direct")]), context))
    before = lines_of(tmp_path / "responses.jsonl")
    large = list(answer_grid(plan([attacks.get("direct"), attacks.get("prefill")]), context))
    after = lines_of(tmp_path / "responses.jsonl")
    assert after[: len(before)] == before
    assert [line["prefill"] != "" for line in after[len(before) :]] == [True] * len(HARMFUL)
    assert [cell for cell in large if cell.attack == "direct"] == small
