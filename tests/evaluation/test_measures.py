"""What is measured beside the grid: kept, in the tables, and left out with the reason where it cannot be had."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.listeners import Recorder
from builders.runs import small_run
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import read_json
from safety_neurons.engines import engine as engine_module
from safety_neurons.evaluation import measures
from safety_neurons.evaluation.config import EvaluationConfig
from safety_neurons.evaluation.measures import check_measures
from safety_neurons.models.generate import Completion
from safety_neurons.report.evaluation_tables import evaluation_tables
from safety_neurons.report.results import Evaluation
from safety_neurons.runs.targets import evaluate

Measured = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_run(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def measured(inputs: dict[str, Any], tmp_path: Path) -> Measured:
    """The evaluation of defenses that the folder `out` holds."""
    settings = {name: value for name, value in inputs.items() if name != "model"}

    def call(*defenses: str, listener: Recorder | None = None, **options: Any) -> dict[str, Any]:
        evaluate(
            inputs["model"],
            settings | {"evaluate": {"answer_tokens": 5, "attacks": ["direct"], "prompts": 3}},
            out=tmp_path / "out",
            defenses=defenses,
            listener=listener,
            **options,
        )
        found: dict[str, Any] = read_json(tmp_path / "out" / "evaluation.json")
        return found

    return call


def test_time_and_utility_of_each_defense(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    results = measured("none", "self-reminder", overhead=2, utility=True)
    assert [row["defense"] for row in results["overhead"]] == ["self-reminder"]
    assert results["overhead"][0]["low"] <= results["overhead"][0]["ratio"] <= results["overhead"][0]["high"]
    assert [row["defense"] for row in results["utility"]] == ["none", "self-reminder"]
    assert all(row["words"]["n"] == 3 for row in results["utility"])
    tables = evaluation_tables(Evaluation.model_validate(results))
    assert "Ordinary requests" in [table.title for table in tables]
    assert "time ratio" in [column.name for column in tables[0].columns]
    # A second evaluation measures nothing again.
    for name in ("overhead", "utility"):
        monkeypatch.setattr(measures, name, None)
    assert measured("none", "self-reminder", overhead=2, utility=True) == results


def test_what_cannot_be_measured_is_said(measured: Measured) -> None:
    notes = Recorder()
    results = measured("none", "safetuning", listener=notes, utility=True)
    assert [row["defense"] for row in results["utility"]] == ["none"]
    assert any("No utility of safetuning" in text and "delta" in text for text in notes.said)


def test_open_questions_are_answered_and_compared(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"turns": ["Name a river.", "How long is it?"]}\n{"turns": ["Name a color."]}\n')
    asked: list[str] = []

    class Judge:
        """Prefers what stands first, which is no preference at all."""

        name, identity, model = "judge", "judge", None

        def answer(self, conversations: Any, **_: Any) -> Any:
            for index, conversation in enumerate(conversations):
                asked.append(conversation.turns[-1].content)
                yield index, Completion("Verdict: A" if "Verdict" in asked[-1] else "Grade: 7", False)

    monkeypatch.setattr(measures, "engine_for", lambda *_: Judge())
    monkeypatch.setattr(measures, "QUESTION_TOKENS", 4)
    options: dict[str, Any] = {"preference_judge": "judge", "questions": questions}
    [row] = measured("none", "self-reminder", **options)["preferences"]
    assert (row["win_rate"]["ties"], row["win_rate"]["swayed"], row["win_rate"]["wins"]) == (3, 3, 0)
    assert row["win_rate"]["rate"]["value"] == 0.5
    assert row["grades"]["mean"]["value"] == 7
    assert len(asked) == 3 * 2 + 3
    # The same file with other questions is another measure.
    questions.write_text('{"turns": ["Name a bird."]}\n')
    [row] = measured("none", "self-reminder", **options)["preferences"]
    assert row["win_rate"]["ties"] == 1


def test_tasks_are_no_measure_of_what_a_defense_does_to_texts(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "lm_eval", lambda *_arguments, **_options: {})
    notes = Recorder()
    results = measured("none", "self-reminder", listener=notes, tasks=("one",))
    assert [row["defense"] for row in results["tasks"]] == ["none"]
    assert any("No tasks of self-reminder" in text and "reads the model alone" in text for text in notes.said)


def test_math_problems_are_solved_before_and_after(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = tmp_path / "problems.jsonl"
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is\n#### {2 * n}"} for n in range(1, 6)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answer(_model: Any, texts: list[str], *, done: frozenset[int], **_options: Any) -> Any:
        """Right up to 3, and up to 1 with the reminder's system prompt."""
        for index, text in enumerate(texts):
            if index not in done:
                number = int((re.findall(r"What is (\d)", text) or ["9"])[0])
                known = number <= (1 if "responsible" in text else 3)
                yield index, Completion(f"#### {2 * number if known else 1}", cut_off=number == 5)

    monkeypatch.setattr(engine_module, "generate", answer)
    results = measured("none", "self-reminder", gsm8k=problems, task_limit=4)
    base, reminded = results["gsm8k"]
    assert (base["defense"], base["exact_match"]["value"], base["exact_match"]["n"]) == ("none", 0.75, 4)
    assert base["difference"] is None
    assert reminded["exact_match"]["value"] == 0.25
    assert reminded["difference"]["value"] == -0.5
    # Two problems of four say little.
    assert -1 <= reminded["difference"]["low"] < -0.5 < 0 < reminded["difference"]["high"] <= 1
    [table] = [one for one in evaluation_tables(Evaluation.model_validate(results)) if "GSM8K" in one.title]
    assert len(table.rows) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_limit": 3}, "belongs to tasks and gsm8k"),
        ({"task_folder": Path("tasks")}, "belongs to tasks"),
        ({"gsm8k": Path("problems.jsonl")}, "problems.jsonl"),
        ({"preference_endpoint": "http://localhost/v1"}, "belong to preference_judge"),
        ({"questions": Path("mine.jsonl")}, "belong to preference_judge"),
        ({"preference_judge": "one", "questions": Path("mine.jsonl")}, "mine.jsonl"),
    ],
    ids=str,
)
def test_options_without_effect_and_files_that_are_not_there_are_errors(options: Any, message: str) -> None:
    with pytest.raises(SafetyNeuronsError, match=message):
        check_measures(EvaluationConfig(**options))
