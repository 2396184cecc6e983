"""Requests in another language: sent as they were translated, or not at all."""

from collections.abc import Callable
from typing import Any

import pytest

from safety_neurons import attacks
from safety_neurons.attacks.attack import AttackedPrompt
from safety_neurons.defenses.defense import Defended
from safety_neurons.engines.bench import Bench
from safety_neurons.errors import CannotRun
from safety_neurons.models.generate import Completion

MakeInterpreter = Callable[[dict[str, Completion]], Any]


def translated(
    engine: Any, bench: Bench, requests: list[str], spec: str = "translation"
) -> list[AttackedPrompt | None]:
    defended = Defended(engine, lambda _prompts: pytest.fail("asked the defence"))
    return list(attacks.get(spec).prompts(requests, defended, bench))


def test_what_was_translated_is_sent_and_the_rest_is_not(bench: Bench, make_interpreter: MakeInterpreter) -> None:
    answers = {
        "cake": Completion(" Bhaka ikhekhe ", False),
        "wall": Completion("I'm sorry, but I can't help with that.", False),
        "tree": Completion("Tshala tshala tshala", True),
        "soup": Completion(" ", False),
    }
    requests = [f"Do it with the {word}: {{now}}" for word in answers]
    engine = make_interpreter(answers)
    sent = translated(engine, bench, requests, "translation:language=Scots Gaelic")
    assert sent == [AttackedPrompt("Bhaka ikhekhe"), None, None, None]
    assert all("Scots Gaelic" in one and request in one for one, request in zip(engine.asked, requests, strict=True))


def test_a_model_that_translates_nothing_cannot_run(bench: Bench, make_interpreter: MakeInterpreter) -> None:
    engine = make_interpreter({"cake": Completion("I cannot help with that.", False)})
    with pytest.raises(CannotRun, match="none of the 1 requests was translated into Zulu"):
        translated(engine, bench, ["Bake a cake"])
