"""Asking and judging: what a judge reads, and that no model is asked for an answer or a verdict twice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from builders.judges import BY_HASH, by_hash
from builders.listeners import Recorder
from builders.runs import lines_of
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.engine import CachedAnswer, CachedEngine, InProcess
from safety_neurons.evaluation.contracts import REFUSAL, Judge, JudgeInput, Judgment, Response, RuleJudge
from safety_neurons.evaluation.judging import CachedVerdict, ask, judge_inputs
from safety_neurons.models.chat import AttackedPrompt, ChatModel
from safety_neurons.models.generate import UNFINISHED, Completion, Sampling
from safety_neurons.prompts import Prompt

PROMPTS = [Prompt(f"p{number}", f"Name {number} rivers.") for number in range(5)]


@dataclass(frozen=True)
class Slow(Judge):
    """A judge that costs something; it dies after `left` judgments."""

    judged: list[JudgeInput] = field(default_factory=list)
    left: list[int] = field(default_factory=lambda: [1000])

    def judge_all(
        self, exchanges: Sequence[JudgeInput], done: frozenset[int] = frozenset()
    ) -> Iterator[tuple[int, Judgment]]:
        # In any order.
        for index in reversed([index for index in range(len(exchanges)) if index not in done]):
            self.left[0] -= 1
            if self.left[0] < 0:
                raise KeyboardInterrupt
            self.judged.append(exchanges[index])
            yield index, Judgment(by_hash(exchanges[index].response), "slowly", 0.25)

    def spent(self) -> str | None:
        return f"{len(self.judged)} judged" if self.judged else None


@pytest.fixture
def engine(model: ChatModel, tmp_path: Path) -> CachedEngine:
    return CachedEngine(InProcess(model, 2), JsonlCache.read(tmp_path / "responses.jsonl", CachedAnswer))


def inputs(*texts: str) -> list[JudgeInput]:
    return [JudgeInput("the request", text) for text in texts]


def test_a_judge_reads_the_plain_request_and_the_whole_turn(engine: CachedEngine) -> None:
    read: list[tuple[str, str]] = []

    def judge(prompt: str, response: str) -> Judgment:
        read.append((prompt, response))
        return Judgment("refused", "always")

    sent = [AttackedPrompt(f"Please! {prompt.text}", "Sure, ") for prompt in PROMPTS]
    answers = ask(
        engine,
        RuleJudge("noting", "this test", judge),
        PROMPTS,
        verdicts=JsonlCache(None, CachedVerdict),
        max_new_tokens=4,
        sent=sent,
    )
    assert read == [(answer.prompt.text, f"Sure, {answer.continuation}") for answer in answers]
    assert [answer.response for answer in answers] == [response for _, response in read]
    assert [answer.prompt for answer in answers] == PROMPTS
    assert [answer.sent for answer in answers] == sent


def test_nothing_is_asked_twice(engine: CachedEngine, tmp_path: Path) -> None:
    verdicts = JsonlCache.read(tmp_path / "verdicts.jsonl", CachedVerdict)
    options: dict[str, Any] = {"verdicts": verdicts, "max_new_tokens": 4}
    first = ask(engine, BY_HASH, PROMPTS, **options)
    assert [answer.verdict for answer in first] == [by_hash(answer.response) for answer in first]
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(lines_of(tmp_path / "responses.jsonl")) == 5
    assert ask(engine, BY_HASH, PROMPTS[::-1], **options) == first[::-1]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
    # Other lengths, drawn answers and a changed model are other answers.
    ask(engine, BY_HASH, PROMPTS, verdicts=verdicts, max_new_tokens=3)
    ask(engine, BY_HASH, PROMPTS, **options, sampling=Sampling(1.0, 0))
    ask(engine.under("tuned"), BY_HASH, PROMPTS, **options)
    lines = lines_of(tmp_path / "responses.jsonl")
    assert len({line["key"] for line in lines}) == len(lines) == 4 * 5
    assert [line["change"] for line in lines] == [""] * 15 + ["tuned"] * 5


def test_progress_counts_every_prompt(engine: CachedEngine) -> None:
    """Also those that are cached or the same."""
    told: list[int] = []
    for _ in range(2):
        ask(
            engine,
            BY_HASH,
            [*PROMPTS, PROMPTS[0]],
            verdicts=JsonlCache(None, CachedVerdict),
            max_new_tokens=4,
            advance=told.append,
        )
    assert sum(told) == 2 * 6


def test_a_judge_that_asks_a_model_is_asked_once(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    killed = Slow("slow", "this test", left=[2])
    with pytest.raises(KeyboardInterrupt):
        judge_inputs(killed, inputs("a", "b", "c", "b"), JsonlCache.read(path, CachedVerdict))
    judge, notes = Slow("slow", "this test"), Recorder()
    found = judge_inputs(judge, inputs("a", "b", "c", "b"), JsonlCache.read(path, CachedVerdict), notes)
    assert len(killed.judged) + len(judge.judged) == 3
    assert [one.verdict for one in found] == [by_hash(text) for text in "abcb"]
    assert {(one.reason, one.score) for one in found} == {("slowly", 0.25)}
    assert notes.said == ["1 judged"]
    # Two of three were judged already.
    assert notes.steps("judge slow") == [2, 1]
    # Another version of the judge is another judge.
    newer = Slow("slow", "this test", version=2)
    judge_inputs(newer, inputs("a"), JsonlCache.read(path, CachedVerdict))
    assert len(newer.judged) == 1


def test_rules_are_applied_each_time_and_written_where_they_changed(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"

    def judge(verdict: Any) -> RuleJudge:
        return RuleJudge("rules", "this test", lambda _prompt, _response: Judgment(verdict, "a rule"))

    for verdict, lines in (("refused", 2), ("refused", 2), ("complied", 4)):
        found = judge_inputs(judge(verdict), inputs("a", "b"), JsonlCache.read(path, CachedVerdict))
        assert [one.verdict for one in found] == [verdict] * 2
        assert len(lines_of(path)) == lines


@pytest.mark.parametrize(
    ("completion", "text", "unscored"),
    [
        (Completion("here it is", True), "Sure, here it is", ""),
        # A prefill is not the model's own answer.
        (Completion(" \n", False), "Sure,  \n", "empty"),
        (Completion("", True, "<think>Hm"), "Sure, ", UNFINISHED),
        (Completion("", False, "<think>Hm</think>"), "Sure, ", "empty"),
        (Completion("", False, outcome="blocked", reason="filter"), REFUSAL, ""),
        (Completion("", False, outcome="not run", reason="long"), "", "not run: long"),
    ],
)
def test_what_is_no_answer_is_not_judged(completion: Completion, text: str, unscored: str) -> None:
    response = Response.of(AttackedPrompt("the request", "Sure, "), completion)
    assert (response.text, response.unscored) == (text, unscored)
    judge = RuleJudge("agreeing", "-", judge=lambda _, response: Judgment("complied", response))
    [judgment] = judge_inputs(judge, [JudgeInput("the request", text, unscored)], JsonlCache(None, CachedVerdict))
    assert judgment == (Judgment("unscored", unscored) if unscored else Judgment("complied", text))
