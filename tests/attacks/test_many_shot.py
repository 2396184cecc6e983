"""The dialogue before the request: harmless, of the length that was asked for, and never what is tested."""

import pytest

from safety_neurons import attacks
from safety_neurons.attacks.attack import AttackedPrompt
from safety_neurons.defenses.defense import Defended
from safety_neurons.engines.bench import Bench
from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.prompts import load_prompts
from safety_neurons.tune.disguises import DISGUISES, VALIDATION


def sent(spec: str, defended: Defended, bench: Bench, *requests: str) -> list[AttackedPrompt | None]:
    return list(attacks.get(spec).prompts(requests, defended, bench))


@pytest.mark.parametrize("shots", [1, 32, 100])
def test_the_request_follows_as_many_exchanges_as_were_asked_for(shots: int, defended: Defended, bench: Bench) -> None:
    (one,) = sent(f"many-shot:shots={shots}", defended, bench, "Plan {it}, please")
    assert one is not None
    before, _, end = one.user.rpartition("User: ")
    assert end == "Plan {it}, please\n\nAssistant:"
    assert before.count("User: ") == before.count("Assistant: ") == shots
    harmless = load_prompts("benign").split("train").texts
    asked = [part.partition("\n")[0] for part in before.split("User: ")[1:]]
    assert len(set(asked)) == shots
    assert set(asked) <= set(harmless)


def test_requests_get_the_same_dialogue(defended: Defended, bench: Bench) -> None:
    first, second = sent("many-shot:shots=3", defended, bench, "<<A>>", "<<B>>")
    assert first is not None
    assert second is not None
    assert first.user.replace("<<A>>", "<<B>>") == second.user


def test_there_are_only_so_many_questions(defended: Defended, bench: Bench) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"shots is at most \d+, not 5000"):
        sent("many-shot:shots=5000", defended, bench, "x")


def test_no_made_up_answer_is_a_disguise(defended: Defended, bench: Bench) -> None:
    (one,) = sent("many-shot:shots=5", defended, bench, "x")
    assert one is not None
    words = [part.strip() for part in one.user.replace("User: ", "\n").replace("Assistant: ", "\n").splitlines()]
    parts = {part for part in words if part and part not in ("x", "Assistant:")}
    disguised = [disguise("REQUEST") for disguise in (*DISGUISES, *VALIDATION)]
    taken = [part.strip() for d in disguised for part in (*d.user.split("REQUEST"), d.prefill) if part.strip()]
    assert not [part for part in parts for other in taken if part in other or other in part]
