"""Prefill on servers of every kind: used if supported, an error if not or if it cannot be tested."""

from collections.abc import Callable
from typing import Any

import pytest

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.engines.endpoint import Endpoint
from safety_neurons.engines.engine import answers
from safety_neurons.engines.server import PREFILL_TEST
from safety_neurons.models.chat import Conversation
from safety_neurons.models.generate import Completion

Messages = list[dict[str, str]]
# What a server makes of a body: its messages, whether the last one stays open, and whether a new one is begun.
Rendering = Callable[[dict[str, Any]], tuple[Messages, bool, bool]]


def tokens(messages: Messages, is_open: bool, begins: bool, mark: int, thought: int) -> int:
    """A template's: a mark before and after each turn, one token a letter, and a thought before a last answer."""
    total = sum(mark + len(message["content"]) + 1 for message in messages)
    if messages[-1]["role"] == "assistant":
        total += thought - (1 if is_open else 0)
    return total + (mark if begins else 0)


def begun(body: dict[str, Any]) -> bool:
    return body["messages"][-1]["role"] == "assistant"


def follows_flags(body: dict[str, Any]) -> tuple[Messages, bool, bool]:
    """vLLM."""
    return body["messages"], body.get("continue_final_message", False), body.get("add_generation_prompt", True)


def turns_into_a_user(body: dict[str, Any]) -> tuple[Messages, bool, bool]:
    """SGLang, where it is not to continue."""
    if begun(body) and not body.get("continue_final_message", False):
        last = {"role": "user", "content": body["messages"][-1]["content"]}
        return [*body["messages"][:-1], last], False, True
    return body["messages"], begun(body), not begun(body)


def always_open(body: dict[str, Any]) -> tuple[Messages, bool, bool]:
    """llama.cpp, before it knew the flags."""
    return body["messages"], begun(body), not begun(body)


def knows_no_flags(body: dict[str, Any]) -> tuple[Messages, bool, bool]:
    return body["messages"], False, True


def knows_one_flag(body: dict[str, Any]) -> tuple[Messages, bool, bool]:
    """vLLM, before it could continue."""
    return body["messages"], False, body.get("add_generation_prompt", True)


def leaves_out(body: dict[str, Any]) -> tuple[Messages, bool, bool]:
    return [message for message in body["messages"] if message["role"] != "assistant"], False, True


def serve(server: Any, rendering: Rendering, mark: int = 2, thought: int = 0, repeats: bool = False) -> None:
    def answer(body: dict[str, Any]) -> Any:
        start = body["messages"][-1]["content"] if repeats and begun(body) else ""
        count = tokens(*rendering(body), mark=mark, thought=thought)
        return server.completion(f"{start} here it is", prompt_tokens=count)

    server.answer = answer


ASKED = [Conversation.of("Tell me", "Sure,"), Conversation.of("Tell me more")]


@pytest.mark.parametrize("repeats", [False, True])
# Templates of Mistral's kind write nothing where an answer begins.
@pytest.mark.parametrize("mark", [0, 2])
@pytest.mark.parametrize(
    ("rendering", "thought"),
    [(follows_flags, 0), (follows_flags, 4), (turns_into_a_user, 0), (always_open, 0)],
)
def test_servers_that_continue(rendering: Rendering, thought: int, mark: int, repeats: bool, server: Any) -> None:
    serve(server, rendering, mark, thought, repeats)
    engine = Endpoint(server.url, "tiny")
    expected = [Completion(" here it is", False)] * 2
    assert answers(engine, ASKED, max_new_tokens=5) == expected
    asked = next(body for body in server.asked if body["messages"][-1]["content"] == "Sure,")
    assert asked["continue_final_message"] is True
    assert asked["add_generation_prompt"] is False
    probes = len(server.asked) - 2
    assert probes in (3, 4)
    # It is found out once.
    assert answers(engine, ASKED, max_new_tokens=5) == expected
    assert len(server.asked) == probes + 4


@pytest.mark.parametrize("mark", [0, 2])
@pytest.mark.parametrize("rendering", [knows_no_flags, knows_one_flag, leaves_out])
def test_servers_that_take_it_for_a_whole_answer(rendering: Rendering, mark: int, server: Any) -> None:
    serve(server, rendering, mark)
    with pytest.raises(CannotRunError, match=r"does not support prefill.*a complete answer"):
        answers(Endpoint(server.url, "tiny"), ASKED, max_new_tokens=5)
    # None of the questions was asked, nor half of them answered.
    assert {body["messages"][0]["content"] for body in server.asked} == {"Hello"}


@pytest.mark.parametrize("status", [400, 422])
def test_servers_that_refuse_the_fields(status: int, server: Any) -> None:
    def answer(body: Any) -> Any:
        if "continue_final_message" in body:
            return server.raw(b'{"detail": "unexpected field"}', status)
        return server.repeat(body)

    server.answer = answer
    with pytest.raises(CannotRunError, match=r"does not support prefill.*unexpected field"):
        answers(Endpoint(server.url, "tiny"), ASKED, max_new_tokens=5)


def test_servers_that_do_not_count(server: Any) -> None:
    server.answer = lambda body: server.repeat(body) | {"usage": None}
    with pytest.raises(CannotRunError, match="reports no token counts"):
        answers(Endpoint(server.url, "tiny"), ASKED, max_new_tokens=5)


def test_a_server_that_fails_is_not_one_that_cannot_continue(server: Any) -> None:
    server.answer = lambda _body: server.raw(b"busy", 429)
    with pytest.raises(SafetyNeuronsError, match="accepts no more requests") as error:
        answers(Endpoint(server.url, "tiny", retries=0), ASKED, max_new_tokens=5)
    assert not isinstance(error.value, CannotRunError)


def test_nothing_is_tried_where_it_is_said_to_be_unsupported_or_not_needed(server: Any) -> None:
    engine = Endpoint(server.url, "tiny", prefill="unsupported")
    with pytest.raises(CannotRunError, match="Prefill is disabled"):
        answers(engine, ASKED, max_new_tokens=5)
    assert server.asked == []
    answers(engine, ASKED[1:], max_new_tokens=5)
    answers(Endpoint(server.url, "tiny"), ASKED[1:], max_new_tokens=5)
    assert [body["messages"] for body in server.asked] == [[{"role": "user", "content": "Tell me more"}]] * 2


def test_twice_the_probe_is_twice_its_tokens(model: Any) -> None:
    tokenizer = model.tokenizer
    once, twice = (tokenizer(PREFILL_TEST * times, add_special_tokens=False)["input_ids"] for times in (1, 2))
    assert once * 2 == twice
