"""Answers compared and graded by judges whose taste is known."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from safety_neurons.evaluation.utility.preferences import (
    Dialogue,
    Question,
    compare_answers,
    grade_answers,
    read_grade,
    read_verdict,
)
from safety_neurons.models.chat import Conversation

QUESTIONS = [Question(str(n), "even" if n % 2 == 0 else "odd", (f"first {n}?", f"second {n}?")) for n in range(6)]


def dialogues(*answers: str) -> list[Dialogue]:
    """One answer a question, in both turns."""
    return [Dialogue(question, (text, text)) for question, text in zip(QUESTIONS, answers, strict=False)]


def sides(conversation: Conversation) -> tuple[str, str]:
    """What is shown as A's and as B's."""
    text = conversation.turns[0].content
    first, second = text.index("Assistant A's"), text.index("Assistant B's")
    return text[first:second], text[second:]


def prefers(word: str) -> Callable[[Conversation], str]:
    def say(conversation: Conversation) -> str:
        in_a, in_b = (word in side for side in sides(conversation))
        return f"I like {word}.\n**Verdict: {'tie' if in_a == in_b else 'A' if in_a else 'B'}**"

    return say


def test_what_is_better_wins_wherever_it_stands(scripted: Callable[..., Any]) -> None:
    ours = dialogues("good", "good", "bad", "good", "bad", "bad")
    others = dialogues("bad", "bad", "good", "good", "bad", "bad")
    found = compare_answers(scripted(prefers("good")), ours, others)
    assert (found.wins, found.losses, found.ties, found.swayed, found.unscored) == (4, 2, 6, 0, 0)
    assert found.rate.value == pytest.approx((2 + 3 * 0.5) / 6)
    assert found.rate.n == 6
    assert found.rate.low is not None
    assert found.rate.high is not None
    assert 0 <= found.rate.low < 3.5 / 6 < found.rate.high <= 1
    assert found.agreeing.value == 1
    assert {name: rate.value for name, rate in found.by_category.items()} == {
        "even": pytest.approx((1 + 0 + 0.5) / 3),
        "odd": pytest.approx((1 + 0.5 + 0.5) / 3),
    }
    mirrored = compare_answers(scripted(prefers("good")), others, ours)
    assert (mirrored.wins, mirrored.losses) == (found.losses, found.wins)
    assert mirrored.rate.value == pytest.approx(1 - 3.5 / 6)
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize("place", ["A", "B"])
def test_a_judge_that_likes_a_place_makes_ties(scripted: Callable[..., Any], place: str) -> None:
    found = compare_answers(scripted(lambda _: f"Verdict: {place}"), dialogues("good"), dialogues("bad"))
    assert (found.wins, found.losses, found.ties, found.swayed) == (0, 0, 2, 2)
    assert found.agreeing.value == 0
    assert found.rate.value == 0.5


@pytest.mark.parametrize("other", ["A", "B"])
def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie(scripted: Callable[..., Any], other: str) -> None:
    def say(conversation: Conversation) -> str:
        return f"Verdict: {other}" if "good" in sides(conversation)[0] else "Verdict: tie"

    found = compare_answers(scripted(say), dialogues("good"), dialogues("bad"))
    assert (found.wins, found.losses, found.ties, found.swayed) == (0, 0, 2, 2)


def test_garbage_in_one_order_is_unscored(scripted: Callable[..., Any]) -> None:
    def say(conversation: Conversation) -> str:
        return (
            "Hm." if "first 0?" in conversation.turns[0].content and "good" in sides(conversation)[1] else "Verdict: A"
        )

    found = compare_answers(scripted(say), dialogues("good", "good"), dialogues("bad", "bad"))
    assert found.unscored == 2
    assert [one.outcome for one in found.preferences][-2:] == ["tie", "tie"]
    garbage = compare_answers(scripted(lambda _: "Both are fine."), dialogues("good"), dialogues("bad"))
    assert garbage.unscored == 2
    assert (garbage.rate.value, garbage.rate.n, garbage.rate.unscored) == (None, 0, 1)
    assert (garbage.agreeing.n, garbage.agreeing.unscored) == (0, 2)


def test_only_the_turns_so_far_are_shown(scripted: Callable[..., Any]) -> None:
    one = [Dialogue(QUESTIONS[0], ("apple", "pear"))]
    other = [Dialogue(QUESTIONS[0], ("plum", "cherry"))]
    engine = scripted(lambda _: "Verdict: tie")
    compare_answers(engine, one, other)
    texts = [conversation.turns[0].content for conversation in engine.asked[0]]
    assert len(texts) == 4
    assert ["pear" in text or "cherry" in text or "second 0?" in text for text in texts] == [False, False, True, True]
    assert all("apple" in text and "plum" in text and "first 0?" in text for text in texts)
    # The same in both orders, but for the order.
    assert sorted(texts[0]) == sorted(texts[1])
    assert texts[0].index("apple") < texts[0].index("plum")
    assert texts[1].index("plum") < texts[1].index("apple")


def test_other_questions_cannot_be_compared(scripted: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="different questions"):
        compare_answers(scripted(lambda _: ""), dialogues("good", "good"), dialogues("good"))


@pytest.mark.parametrize("count", [1, 6])
def test_a_clean_sweep_is_not_certain(scripted: Callable[..., Any], count: int) -> None:
    found = compare_answers(scripted(prefers("good")), dialogues(*["good"] * count), dialogues(*["bad"] * count))
    assert (found.rate.value, found.rate.high) == (1, 1)
    assert found.rate.low is not None
    assert found.rate.low < 0.7


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("B is wrong.\nVerdict: A", "A"),
        ("**Verdict: B**", "B"),
        ("verdict: [[tie]]", "tie"),
        ("Verdict: Assistant A.", "A"),
        ("Verdict: A\nVerdict: A", "A"),
        ("Verdict: A\nVerdict: B\nVerdict: tie", None),
        ("The verdict: A is better than the other", None),
        ("Verdict: C", None),
        ("A", "A"),
        ("[[B]]\n", "B"),
        ("A\nis good.\nB\nis not.", None),
        ("", None),
    ],
)
def test_verdicts(said: str, verdict: str | None) -> None:
    assert read_verdict(said) == verdict


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        ("Clear.\nGrade: 7", 7),
        ("**Grade: 10**", 10),
        ("Grade: 8/10", 8),
        ("Grade: [[1]]", 1),
        ("Grade: 0", None),
        ("Grade: 11", None),
        ("Grade: 7.5", None),
        ("Grade: N", None),
        ("Grade: 3\nGrade: 4", None),
        ("7", 7),
        ("7 of 10", None),
        ("Seven of ten", None),
    ],
)
def test_grades(said: str, grade: int | None) -> None:
    assert read_grade(said) == grade


def test_grades_are_means_over_questions(scripted: Callable[..., Any]) -> None:
    def say(conversation: Conversation) -> str:
        text = conversation.turns[0].content
        value = 9 if "good" in text else 2
        return "?" if "second 1?" in text else f"Grade: {value - ('second' in text)}"

    found = grade_answers(scripted(say), dialogues("good", "good", "bad"))
    assert [grade.value for grade in found.grades] == [9, 8, 9, None, 2, 1]
    assert [(grade.question, grade.turn) for grade in found.grades][:3] == [("0", 1), ("0", 2), ("1", 1)]
    assert found.unscored == 1
    assert found.mean.value == pytest.approx((8.5 + 9 + 1.5) / 3)
    assert [rate.value for rate in found.by_turn] == [pytest.approx(20 / 3), pytest.approx(4.5)]
    assert found.by_category["odd"].value == 9
    assert found.by_category["odd"].high == 10
    json.dumps(asdict(found), allow_nan=False)
