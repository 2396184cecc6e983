"""The time that defenses take, on a clock that a fake engine turns."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pytest

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.engine import CachedAnswer, CachedEngine
from safety_neurons.evaluation.contracts import (
    BLOCKED,
    REFUSAL,
    Defended,
    Defense,
    EvaluationContext,
    Response,
    respond_with,
)
from safety_neurons.evaluation.utility.overhead import overhead
from safety_neurons.models.chat import AttackedPrompt, ChatModel, Conversation
from safety_neurons.models.generate import Completion

PROMPTS = [AttackedPrompt("a"), AttackedPrompt("b", "Sure"), AttackedPrompt("c")]


@dataclass
class Clock:
    """Its seconds go by only when somebody answers; the machine becomes slower with every answer."""

    now: float = 0.0
    slowness: float = 1.0

    def spend(self, seconds: float) -> None:
        self.now += seconds * self.slowness
        self.slowness *= 1.001


@dataclass(frozen=True)
class FakeEngine:
    """Two seconds an answer of ten tokens, and three more where the model is changed; `asked` notes what is asked."""

    model: ChatModel | None
    clock: Clock
    change: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    name: str = "fake"

    @property
    def identity(self) -> str:
        return f"fake {self.change}"

    def under(self, change: str) -> Self:
        return replace(self, change=change)

    def answer(self, conversations: Sequence[Conversation], **_options: Any) -> Iterator[tuple[int, Completion]]:
        for index, conversation in enumerate(conversations):
            self.clock.spend(5.0 if self.change else 2.0)
            self.asked.append((self.change, conversation.turns[-1].content))
            yield index, Completion("x" * 10, True)


@dataclass(frozen=True, kw_only=True)
class Changing(Defense):
    """Changes the model, which takes long to prepare."""

    def _open(self, context: EvaluationContext) -> None:
        assert isinstance(context.engine, FakeEngine)
        context.engine.clock.now += 1000.0
        assert context.folder is not None
        (context.folder / f"trained-{len(list(context.folder.iterdir()))}").touch()

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        self._open(context)
        changed = context.under("changed")
        yield Defended(changed.engine, functools.partial(respond_with, changed))


@dataclass(frozen=True, kw_only=True)
class Blocking(Defense):
    """Asks, and says its own words instead."""

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        def respond(prompts: Sequence[AttackedPrompt]) -> list[Response]:
            return [BLOCKED for _ in respond_with(context, prompts)]

        yield Defended(context.engine, respond)


CHANGING = Changing(name="changing", source="", description="")
BLOCKING = Blocking(name="blocking", source="", description="")


@pytest.fixture
def make_bench(model: ChatModel, tmp_path: Path) -> Callable[..., tuple[EvaluationContext, FakeEngine]]:
    def make(with_model: bool = True) -> tuple[EvaluationContext, FakeEngine]:
        engine = FakeEngine(model if with_model else None, Clock())
        return EvaluationContext(CachedEngine(engine, JsonlCache(tmp_path / "answers.jsonl", CachedAnswer)), 10), engine

    return make


def test_ratios_are_those_of_the_work_however_the_machine_slows_down(
    make_bench: Callable[..., tuple[EvaluationContext, FakeEngine]], tmp_path: Path
) -> None:
    context, engine = make_bench()
    found = overhead(context, [CHANGING, BLOCKING], PROMPTS, rounds=3, clock=lambda: engine.clock.now)
    assert [row.defense for row in found] == ["changing", "blocking"]
    changing, blocking = found
    for value in (changing.ratio, changing.low, changing.high, changing.total):
        assert value == pytest.approx(2.5, rel=0.02)
    # As much time as without it, shared out to the tokens that the user reads.
    assert blocking.total == pytest.approx(1.0, rel=0.02)
    assert blocking.ratio == pytest.approx(10 / len(REFUSAL), rel=0.02)
    assert all(row.low <= row.ratio <= row.high and row.total_low <= row.total <= row.total_high for row in found)
    assert changing.low < changing.high
    # The kept answers were neither read nor written, and what is trained has a place.
    assert not (tmp_path / "answers.jsonl").exists()
    assert len(engine.asked) == 3 * 3 * (1 + len(PROMPTS))


def test_all_take_turns(make_bench: Callable[..., tuple[EvaluationContext, FakeEngine]]) -> None:
    context, engine = make_bench()
    overhead(context, [CHANGING], PROMPTS[:1], rounds=2, clock=lambda: engine.clock.now)
    assert [change for change, _ in engine.asked] == ["", "", "changed", "changed", "changed", "changed", "", ""]


def test_what_cannot_be_measured_says_why(make_bench: Callable[..., tuple[EvaluationContext, FakeEngine]]) -> None:
    context, _ = make_bench()
    for prompts, rounds in (([], 1), (PROMPTS, 0)):
        with pytest.raises(SafetyNeuronsError, match="at least one prompt and one round"):
            overhead(context, [CHANGING], prompts, rounds)
    with pytest.raises(CannotRunError, match="provides text only"):
        overhead(make_bench(with_model=False)[0], [CHANGING], PROMPTS)
