"""Questions in several turns: reading them, and answering each turn in the light of what was said."""

import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation.contracts import EvaluationContext, respond_with
from safety_neurons.evaluation.defenses import Defended, Response
from safety_neurons.evaluation.utility.preferences import Question, answer_questions, read_questions
from safety_neurons.models.chat import Conversation, Turn
from safety_neurons.prompts.prompt_set import normalized


def test_the_bundled_questions() -> None:
    questions = read_questions()
    assert len({question.id for question in questions}) == len(questions) == 24
    assert len({normalized(turn) for question in questions for turn in question.turns}) == 48
    assert all(len(question.turns) == 2 for question in questions)
    assert list(Counter(question.category for question in questions).values()) == [3] * 8


def test_a_file_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"question_id": 81, "category": "rivers", "turns": ["Name a river. ", "How long?"]}, {"turns": ["Why?"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read_questions(path) == [
        Question("81", "rivers", ("Name a river.", "How long?")),
        Question("2", "", ("Why?",)),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"reply": "Why?"}'], "Line 1 of .* has no `turns`"),
        (['{"turns": ["a"]}', '{"turns": []}'], "Line 2 of .* has no `turns`"),
        (['{"turns": ["a", 3]}'], "has no `turns`"),
        (['{"turns": ["a", " "]}'], "has no `turns`"),
        (['{"turns": 3}'], "has no `turns`"),
        (['{"id": 1, "turns": ["a"]}', '{"id": "1", "turns": ["b"]}'], "the id '1'"),
    ],
)
def test_bad_files(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SafetyNeuronsError, match=message):
        read_questions(path)


def test_each_turn_goes_on_from_the_answers_before_it(scripted: Callable[..., Any]) -> None:
    questions = [
        Question("a", "", ("one", "two", "three")),
        Question("b", "", ("uno",)),
        Question("c", "", ("eins", "zwei")),
    ]
    engine = scripted(lambda conversation: f"re {conversation.turns[-1].content} {len(conversation.turns)}")
    context = EvaluationContext(engine, 8)
    dialogues = answer_questions(Defended(engine, functools.partial(respond_with, context)), questions)
    assert [one.question for one in dialogues] == questions
    assert [one.answers for one in dialogues] == [
        ("re one 1", "re two 3", "re three 5"),
        ("re uno 1",),
        ("re eins 1", "re zwei 3"),
    ]
    # One batch a turn.
    assert [len(batch) for batch in engine.asked] == [3, 2, 1]
    assert engine.asked[1][1] == Conversation(
        (Turn("user", "eins"), Turn("assistant", "re eins 1"), Turn("user", "zwei"))
    )


def test_what_the_defence_answers_is_what_was_said(scripted: Callable[..., Any]) -> None:
    seen = []

    def respond(prompts: Any) -> list[Response]:
        seen.extend(prompts)
        return [Response("No.", outcome="blocked") for _ in prompts]

    answer_questions(Defended(scripted(lambda _: ""), respond), [Question("a", "", ("one", "two"))])
    assert seen[1].before == (Turn("user", "one"), Turn("assistant", "No."))


def test_no_questions_no_answers(scripted: Callable[..., Any]) -> None:
    assert answer_questions(Defended(scripted(lambda _: ""), lambda _: []), []) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.jsonl",
            json.dumps({"messages": [{"role": "user", "content": "Why?"}, {"role": "user", "content": "How?"}]}),
        ),
        ("a.json", json.dumps({"prompt": {"0": ["Why?", " How?"]}})),
        ("a.csv", 'question_id;turns\n1;"[""Why?"", ""How?""]"\n'),
    ],
)
def test_other_forms_of_questions(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_questions(tmp_path / name) == [Question("1", "", ("Why?", "How?"))]


def test_questions_of_one_turn(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Why?\nHow?\n", encoding="utf-8")
    assert [question.turns for question in read_questions(tmp_path / "a.txt")] == [("Why?",), ("How?",)]
