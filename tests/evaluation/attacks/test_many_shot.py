"""The dialogue before the request: harmless, of the length that was asked for, and never what is tested."""

import pytest

from builders.disguises import HELD_BACK, TRAINED, parts_of, shared
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation import attacks
from safety_neurons.evaluation.contracts import Defended, EvaluationContext
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.prompts import load_prompts


def sent(spec: str, defended: Defended, context: EvaluationContext, *requests: str) -> list[AttackedPrompt | None]:
    return list(attacks.get(spec).prompts(requests, defended, context))


@pytest.mark.parametrize("shots", [1, 32, 100])
def test_the_request_follows_as_many_exchanges_as_were_asked_for(
    shots: int, defended: Defended, context: EvaluationContext
) -> None:
    (one,) = sent(f"many-shot:shots={shots}", defended, context, "Plan {it}, please")
    assert one is not None
    before, _, end = one.user.rpartition("User: ")
    assert end == "Plan {it}, please\n\nAssistant:"
    assert before.count("User: ") == before.count("Assistant: ") == shots
    harmless = load_prompts("benign").split("train").texts
    asked = [part.partition("\n")[0] for part in before.split("User: ")[1:]]
    assert len(set(asked)) == shots
    assert set(asked) <= set(harmless)


def test_requests_get_the_same_dialogue(defended: Defended, context: EvaluationContext) -> None:
    first, second = sent("many-shot:shots=3", defended, context, "<<A>>", "<<B>>")
    assert first is not None
    assert second is not None
    assert first.user.replace("<<A>>", "<<B>>") == second.user


def test_more_shots_than_questions_are_an_error(defended: Defended, context: EvaluationContext) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"shots must be at most \d+, not 5000"):
        sent("many-shot:shots=5000", defended, context, "x")


def test_no_made_up_answer_is_a_disguise(defended: Defended, context: EvaluationContext) -> None:
    (one,) = sent("many-shot:shots=5", defended, context, "x")
    assert one is not None
    words = [part.strip() for part in one.user.replace("User: ", "\n").replace("Assistant: ", "\n").splitlines()]
    own = {part for part in words if part and part not in ("x", "Assistant:")}
    assert not shared(own, parts_of((*TRAINED, *HELD_BACK)))
