"""What a member of a family returns is checked where it is called, and the error names the member."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from builders.judges import ALWAYS_REFUSED
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.records import JsonlCache
from safety_neurons.evaluation.checked import attacked, opened
from safety_neurons.evaluation.contracts import Attack, Defended, Defense, JudgeInput, Judgment, Response, RuleJudge
from safety_neurons.evaluation.judging import CachedVerdict, judge_inputs
from safety_neurons.models.chat import AttackedPrompt

ANY: Any = None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "gave None .NoneType. instead of a Judgment"),
        (3, "gave 3 .int. instead of a Judgment"),
        (Judgment("maybe", "x"), "not valid: verdict"),  # type: ignore[arg-type]
        (SystemExit(0), "failed .SystemExit.: 0"),
    ],
)
def test_a_judge_that_gives_no_judgment_is_named(given: Any, told: str) -> None:
    def judge(prompt: str, response: str) -> Judgment:
        if isinstance(given, BaseException):
            raise given
        result: Judgment = given
        return result

    with pytest.raises(SafetyNeuronsError, match=rf"The judge mine\.py:J .*{told}"):
        judge_inputs(RuleJudge("mine.py:J", "", judge), [JudgeInput("p", "r")], JsonlCache(None, CachedVerdict))


def test_a_fault_of_the_projects_own_stays_one() -> None:
    def judge(prompt: str, response: str) -> Judgment:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        judge_inputs(RuleJudge("own", "", judge), [JudgeInput("p", "r")], JsonlCache(None, CachedVerdict))
    assert judge_inputs(ALWAYS_REFUSED, [JudgeInput("p", "r")], JsonlCache(None, CachedVerdict))


@pytest.mark.parametrize("given", [[], ["text"], [AttackedPrompt(ANY)], None])
def test_an_attack_that_gives_no_prompts_is_named(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = Attack(name="mine.py:A", source="", description="")
    monkeypatch.setattr(Attack, "prompts", lambda *_: given)
    with pytest.raises(
        SafetyNeuronsError, match=r"The attack mine\.py:A gave .* instead of a sequence with an Attacked"
    ):
        attacked(attack, ["request"], ANY, ANY)


@contextlib.contextmanager
def _gives(given: Any) -> Iterator[Any]:
    yield given


@pytest.mark.parametrize("given", [7, None, _gives(None)])
def test_a_defense_that_opens_nothing_is_named(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Defense, "opened", lambda *_: given)
    told = r"The defense mine\.py:D gave .* instead of a context manager"
    defense = Defense(name="mine.py:D", source="", description="")
    with pytest.raises(SafetyNeuronsError, match=told), opened(defense, ANY):
        pass


@pytest.mark.parametrize("given", [[], ["text"], [Response(ANY)]])
def test_a_defense_that_gives_no_responses_is_named(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Defense, "opened", lambda *_: _gives(Defended(ANY, lambda _: given)))
    defense = Defense(name="mine.py:D", source="", description="")
    told = r"The defense mine\.py:D gave .* instead of a list with a Response"
    with opened(defense, ANY) as defended, pytest.raises(SafetyNeuronsError, match=told):
        defended.respond([AttackedPrompt("request")])
