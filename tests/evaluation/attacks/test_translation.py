"""Requests in another language: sent as they were translated, or not at all."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.evaluation import attacks, defenses
from safety_neurons.evaluation.contracts import BLOCKED, Defended, EvaluationContext, Response
from safety_neurons.evaluation.grid import Plan, answer_grid
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.models.generate import Completion
from safety_neurons.prompts import Prompt

MakeInterpreter = Callable[[dict[str, Completion]], Any]


def translated(
    engine: Any, context: EvaluationContext, requests: list[str], spec: str = "translation"
) -> list[AttackedPrompt | None]:
    defended = Defended(engine, lambda _prompts: pytest.fail("asked the defense"))
    return list(attacks.get(spec).prompts(requests, defended, context))


def test_what_was_translated_is_sent_and_the_rest_is_not(
    context: EvaluationContext, make_interpreter: MakeInterpreter
) -> None:
    answers = {
        "cake": Completion(" Bhaka ikhekhe ", False),
        "wall": Completion("I'm sorry, but I can't help with that.", False),
        "tree": Completion("Tshala tshala tshala", True),
        "soup": Completion(" ", False),
    }
    requests = [f"Do it with the {word}: {{now}}" for word in answers]
    engine = make_interpreter(answers)
    sent = translated(engine, context, requests, "translation:language=Scots Gaelic")
    assert sent == [AttackedPrompt("Bhaka ikhekhe"), None, None, None]
    assert all("Scots Gaelic" in one and request in one for one, request in zip(engine.asked, requests, strict=True))


def test_a_model_that_translates_nothing_cannot_run(
    context: EvaluationContext, make_interpreter: MakeInterpreter
) -> None:
    engine = make_interpreter({"cake": Completion("I cannot help with that.", False)})
    with pytest.raises(CannotRunError, match="none of the 1 requests was translated into Zulu"):
        translated(engine, context, ["Bake a cake"])


def test_answers_come_back_in_english_where_they_can(
    context: EvaluationContext, make_interpreter: MakeInterpreter
) -> None:
    answers = {
        "ikhekhe": Completion(" Bake the cake. ", False),
        "udonga": Completion("I'm sorry, but I can't help with that.", False),
        "isobho": Completion("Soup soup", True),
    }
    engine = make_interpreter(answers)
    defended = Defended(engine, lambda _prompts: pytest.fail("asked the defense"))
    given = [*(Response(f"Nansi {word}", word == "isobho") for word in answers), BLOCKED, Response("  ")]
    attack = attacks.get("translation")
    assert attack.returned(given, defended, context) == [
        Response("Bake the cake."),
        # A refusal that was translated is one.
        Response("I'm sorry, but I can't help with that."),
        Response("Nansi isobho", True),
        BLOCKED,
        Response("  "),
    ]
    assert len(engine.asked) == 3
    assert all("into English" in one for one in engine.asked)
    assert attacks.get("translation:back=false").returned(given, defended, context) == given


def test_another_model_translates_where_one_is_named(
    context: EvaluationContext, make_interpreter: MakeInterpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_interpreter({"cake": Completion("Bhaka ikhekhe", False)})
    asked: list[tuple[str | None, str]] = []

    def engine_for(endpoint: str | None, model: str) -> Any:
        asked.append((endpoint, model))
        return other

    monkeypatch.setattr("safety_neurons.evaluation.attacks.translation.engine_for", engine_for)
    spec = "translation:model=interpreter,endpoint=http://127.0.0.1:9/v1"
    assert translated(None, context, ["Bake a cake"], spec) == [AttackedPrompt("Bhaka ikhekhe")]
    assert asked == [("http://127.0.0.1:9/v1", "interpreter")]
    assert [attacks.get(one).sees_defended_model for one in ("translation", spec)] == [True, False]


def test_a_server_without_a_model_is_an_error() -> None:
    with pytest.raises(SafetyNeuronsError, match="model=NAME"):
        attacks.get("translation:endpoint=http://127.0.0.1:9/v1")


def test_an_address_that_is_none_is_told_at_once() -> None:
    with pytest.raises(SafetyNeuronsError, match="The URL of the server must"):
        attacks.get("translation:endpoint=nowhere,model=interpreter")


def test_the_grid_judges_what_came_back(
    context: EvaluationContext, make_interpreter: MakeInterpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_interpreter({"Why": Completion("Ngani", False), "After": Completion("Because.", False)})
    monkeypatch.setattr("safety_neurons.evaluation.attacks.translation.engine_for", lambda *_: other)
    none = defenses.get("none")
    monkeypatch.setattr(
        type(none),
        "opened",
        lambda _self, context: contextlib.nullcontext(
            Defended(context.engine, lambda prompts: [Response(f"After {prompt.user}") for prompt in prompts])
        ),
    )
    plan = Plan((attacks.get("translation:model=interpreter"),), (none,), (Prompt("one", "Why?"),), {})
    [cell] = answer_grid(plan, context)
    assert cell.responses == (Response("Because."),)
