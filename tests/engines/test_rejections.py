"""What an endpoint does with a server's rejections: of one prompt, of a parameter, of everything; and with thoughts."""

import re
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.endpoint import Endpoint
from safety_neurons.engines.engine import CachedAnswer, CachedEngine, answers
from safety_neurons.models.chat import Conversation
from safety_neurons.models.generate import Completion, Sampling

FILTER = b'{"error": {"message": "It was filtered. Change it.", "code": "content_filter"}}'
LONG = b'{"object": "error", "message": "This model\'s maximum context length is 512 tokens. You asked for 900."}'
ODD = b'{"error": {"message": "Conversation roles are odd"}}'


def prompts(*texts: str) -> list[Conversation]:
    return [Conversation.of(text) for text in texts]


def said(body: Any) -> str:
    return str(body["messages"][-1]["content"])


def rejecting(server: Any, text: str, raw: bytes, status: int = 400) -> None:
    """Reject what holds a text, and repeat everything else."""
    server.answer = lambda body: server.raw(raw, status) if text in said(body) else server.repeat(body)


def problem(message: str, **more: Any) -> bytes:
    return repr({"error": {"message": message, **more}}).replace("'", '"').encode()


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    ("raw", "status", "outcome", "reason"),
    [
        (FILTER, 400, "blocked", "content_filter: It was filtered."),
        (
            LONG,
            400,
            "not run",
            "too long for the server (status 400): This model's maximum context length is 512 tokens.",
        ),
        (
            b"<html><title>413 Too Large</title></html>",
            413,
            "not run",
            "too long for the server (status 413): 413 Too Large:",
        ),
        (ODD, 400, "not run", "rejected by the server (status 400): Conversation roles are odd"),
        (ODD, 500, "not run", "rejected by the server (status 500): Conversation roles are odd"),
        (
            b"<html><title>Attention Required</title></html>",
            403,
            "not run",
            "rejected by the server (status 403): Attention Required:",
        ),
    ],
)
def test_one_prompt_does_not_stop_the_others(
    raw: bytes, status: int, outcome: Any, reason: str, concurrency: int, server: Any, tmp_path: Path
) -> None:
    rejecting(server, "bad", raw, status)
    file = tmp_path / "answers.jsonl"
    for _ in range(2):
        engine = CachedEngine(
            Endpoint(server.url, "tiny", concurrency=concurrency, retries=0), JsonlCache.read(file, CachedAnswer)
        )
        found = answers(engine, prompts("bad one", "a", "b", "bad two"), max_new_tokens=5)
        rejected = Completion("", False, outcome=outcome, reason=reason)
        assert found == [rejected, Completion("You say: a", False), Completion("You say: b", False), rejected]
        # What was rejected is not asked again, at the next start either.
        assert {said(body) for body in server.asked} <= {"bad one", "a", "b", "bad two", "Hello"}
        assert sum("bad" in said(body) for body in server.asked) == 2


@pytest.mark.parametrize(
    ("raw", "status", "expected"),
    [
        (problem("Unknown parameter: x"), 400, "rejected a request.*Unknown parameter: x"),
        (problem("The model does not exist"), 404, "no model called 'tiny'.*does not exist"),
        (LONG, 400, "too long.*'Hello' is too long, too: shorter answers"),
        (problem("The engine died"), 500, "failed repeatedly.*The engine died"),
    ],
)
def test_a_server_that_rejects_everything_stops_at_once(raw: bytes, status: int, expected: str, server: Any) -> None:
    rejecting(server, "", raw, status)
    with pytest.raises(SafetyNeuronsError, match=expected):
        answers(Endpoint(server.url, "tiny", concurrency=2, retries=0), prompts(*"abcdefgh"), max_new_tokens=5)
    assert len(server.asked) <= 4


def test_a_server_that_dies_in_between_loses_no_prompts(server: Any, tmp_path: Path) -> None:
    """It rejects what it accepted before, so the prompts are not the cause."""

    def answer(body: Any) -> Any:
        return server.repeat(body) if len(server.asked) <= 3 else server.raw(b'{"error": "no model is loaded"}', 400)

    server.answer = answer
    cache = JsonlCache.read(tmp_path / "answers.jsonl", CachedAnswer)
    engine = CachedEngine(Endpoint(server.url, "tiny", concurrency=1, retries=0), cache)
    with pytest.raises(SafetyNeuronsError, match="no model is loaded"):
        answers(engine, prompts(*"abcdefgh"), max_new_tokens=5)
    assert [entry.outcome for entry in cache.entries.values()] == ["answered"] * 3


def test_a_filter_that_blocks_everything_is_told(server: Any) -> None:
    rejecting(server, "", FILTER)
    engine = Endpoint(server.url, "tiny", concurrency=2)
    with pytest.warns(UserWarning, match="blocks even the prompt 'Hello'") as notes:
        found = answers(engine, prompts(*"abc"), max_new_tokens=5)
    assert [one.outcome for one in found] == ["blocked"] * 3
    answers(engine, prompts("d"), max_new_tokens=5)
    assert (len(notes), sum(said(body) == "Hello" for body in server.asked)) == (1, 1)


def test_the_page_of_a_firewall_is_no_content_filter(server: Any) -> None:
    page = b"<html><title>Blocked</title>This site was blocked due to content policy.</html>"
    rejecting(server, "", page, 403)
    with pytest.raises(SafetyNeuronsError, match=r"status 403.*Blocked: This site"):
        answers(Endpoint(server.url, "tiny"), prompts("a"), max_new_tokens=5)


def test_servers_that_only_stream(server: Any) -> None:
    event = b'data: {"choices": [{"delta": {"content": "Yes"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'

    def answer(body: Any) -> Any:
        if not body.get("stream"):
            return server.raw(problem("This model only support stream mode, please enable the stream parameter."), 400)
        return server.raw(event)

    server.answer = answer
    with pytest.warns(UserWarning, match="answers as a stream only") as notes:
        found = answers(Endpoint(server.url, "tiny", concurrency=1), prompts("a", "b"), max_new_tokens=5)
    assert found == [Completion("Yes", False)] * 2
    assert (len(notes), len(server.asked)) == (1, 3)


def test_a_blocked_answer_is_blocked(server: Any) -> None:
    server.answer = lambda _body: server.completion(None, "SAFETY")
    found = answers(Endpoint(server.url, "tiny"), prompts("a"), max_new_tokens=5)
    assert found == [Completion("", False, outcome="blocked", reason="safety")]


MAX_TOKENS = "Unsupported parameter: max_tokens is not supported with this model. Use max_completion_tokens instead."


@pytest.mark.parametrize(
    ("name", "message", "status", "sent", "note"),
    [
        ("max_tokens", MAX_TOKENS, 400, {"max_completion_tokens": 5, "temperature": 0.0}, "max_completion_tokens"),
        (
            "temperature",
            "Unsupported value: temperature does not support 0.0 with this model.",
            400,
            {"max_tokens": 5},
            "does not accept temperature 0: its answers are not greedy",
        ),
        ("temperature", "temperature is deprecated for this model.", 400, {"max_tokens": 5}, "not greedy"),
        (
            "temperature",
            "temperature must be strictly positive",
            422,
            {"max_tokens": 5, "temperature": 0.01},
            "sampled at 0.01",
        ),
    ],
)
def test_parameters_are_learned_once_and_told_once(
    name: str, message: str, status: int, sent: Any, note: str, server: Any
) -> None:
    def answer(body: Any) -> Any:
        wrong = (name in body and name not in sent) or (name == "temperature" and body.get(name) == 0)
        return server.raw(problem(message, param=name), status) if wrong else server.repeat(body)

    server.answer = answer
    engine = Endpoint(server.url, "tiny", concurrency=1)
    with pytest.warns(UserWarning, match=note) as notes:
        assert [one.text for one in answers(engine, prompts("a", "b"), max_new_tokens=5)] == [
            "You say: a",
            "You say: b",
        ]
    assert len(notes) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers(engine, prompts("c"), max_new_tokens=5)
    assert [said(body) for body in server.asked] == ["a", "a", "b", "c"]
    for body in server.asked[1:]:
        assert {key: value for key, value in body.items() if key not in ("model", "messages")} == sent


def test_several_parameters_of_a_sampled_answer(server: Any) -> None:
    """FastAPI names the place of the field; only one at a time is rejected."""
    detail = (
        b'{"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}'
    )
    number = iter(range(100))

    def answer(body: Any) -> Any:
        if "seed" in body:
            return server.raw(detail, 422)
        if body.get("temperature", 0.0) > 1:
            return server.raw(problem("temperature: Input should be less than or equal to 1"), 400)
        if "temperature" in body and "top_p" in body:
            return server.raw(problem("temperature and top_p cannot both be specified: use one"), 400)
        return server.completion(f"Drawn {next(number)}")

    server.answer = answer
    engine = Endpoint(server.url, "tiny", concurrency=1)
    with pytest.warns(UserWarning, match="does not accept") as notes:
        answers(engine, prompts("a"), max_new_tokens=5, sampling=Sampling(0.7, 5))
    assert [str(note.message).partition(" accept ")[2].partition(":")[0].partition(",")[0] for note in notes] == [
        "seed",
        "temperature 2",
        "top_p",
    ]
    answers(engine, prompts("b"), max_new_tokens=5)
    # The greedy request is as it was asked for: only the rejected values are changed.
    assert (server.asked[-1]["temperature"], said(server.asked[-1])) == (0.0, "b")


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "Only user and assistant roles are supported!",
        "Developer instruction is not enabled for models/gemma-3-1b-it",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "messages[0].role does not support system with this model.",
    ],
)
def test_servers_without_a_system_role(message: str, server: Any) -> None:
    def answer(body: Any) -> Any:
        if body["messages"][0]["role"] == "system":
            return server.raw(problem(message), 400)
        return server.repeat(body)

    server.answer = answer
    engine = Endpoint(server.url, "tiny", system="Be kind.", concurrency=1)
    with pytest.warns(UserWarning, match="has no system role") as notes:
        found = answers(engine, prompts("a", "b"), max_new_tokens=5)
    assert [one.text for one in found] == ["You say: Be kind.\n\na", "You say: Be kind.\n\nb"]
    assert (len(notes), len(server.asked)) == (1, 3)


def test_options_of_the_template_are_not_left_out(server: Any) -> None:
    """They were asked for: without them the answers would be others."""

    def answer(body: Any) -> Any:
        if "chat_template_kwargs" in body:
            return server.raw(problem("Unrecognized request argument supplied: chat_template_kwargs"), 400)
        return server.repeat(body)

    server.answer = answer
    engine = Endpoint(server.url, "tiny", template_options={"enable_thinking": False})
    with pytest.raises(SafetyNeuronsError, match=r"rejected a request.*chat_template_kwargs"):
        answers(engine, prompts("a"), max_new_tokens=5)


def thinking(server: Any, needed: int, context: int = 10_000) -> None:
    """A server that thinks for a number of tokens; the limit of tokens and the prompt must fit into its context."""

    def answer(body: Any) -> Any:
        if body["max_tokens"] > context:
            return server.raw(LONG, 400)
        if body["max_tokens"] < needed:
            return server.completion(f"<think>\n{'hm ' * 3}", "length")
        return server.completion(f"<think>\nhm\n</think>\n\n{said(body)}")

    server.answer = answer


@pytest.mark.filterwarnings("ignore:.*reasons before it answers")
def test_an_unfinished_thought_gets_more_tokens_once(server: Any) -> None:
    thinking(server, 500)
    engine = Endpoint(server.url, "tiny", concurrency=1, reasoning_tokens=600)
    found = answers(engine, prompts("a", "b"), max_new_tokens=5)
    assert found == [Completion(text, False, "<think>\nhm\n</think>\n\n") for text in "ab"]
    # The second request begins with the room that the first one was found to need.
    assert [body["max_tokens"] for body in server.asked] == [5, 605, 605]
    thinking(server, 5000)
    assert answers(engine, prompts("c"), max_new_tokens=5) == [Completion("", True, "<think>\nhm hm hm ")]
    assert [body["max_tokens"] for body in server.asked[3:]] == [605]


@pytest.mark.filterwarnings("ignore:.*reasons before it answers")
def test_room_for_reasoning_that_does_not_fit_is_not_asked_for(server: Any) -> None:
    thinking(server, 500, context=100)
    engine = Endpoint(server.url, "tiny", concurrency=1)
    found = answers(engine, prompts("a", "b"), max_new_tokens=5)
    assert [(one.unscored, one.outcome) for one in found] == [("unfinished reasoning", "answered")] * 2
    assert [body["max_tokens"] for body in server.asked] == [5, 1029, 1029, 5]


def test_no_room_for_reasoning(server: Any) -> None:
    thinking(server, 500)
    engine = Endpoint(server.url, "tiny", reasoning_tokens=0)
    assert answers(engine, prompts("a"), max_new_tokens=5) == [Completion("", True, "<think>\nhm hm hm ")]
    assert len(server.asked) == 1
    with pytest.raises(SafetyNeuronsError, match="reasoning_tokens must not be negative"):
        Endpoint(server.url, reasoning_tokens=-1)


def test_a_missing_finish_reason_at_the_limit_is_a_cut(server: Any) -> None:
    server.answer = lambda _body: {"choices": [{"message": {"content": "Yes"}}], "usage": {"completion_tokens": 5}}
    for tokens, cut_off in ((5, True), (6, False)):
        found = answers(Endpoint(server.url, "tiny"), prompts("a"), max_new_tokens=tokens)
        assert found == [Completion("Yes", cut_off)]


@pytest.mark.parametrize(
    "broken",
    [
        b'{"choices": null, "error": {"message": "Provider returned error", "code": 429}}',
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": "Su',
        b'data: {"choices": [{"delta": {"content": "Su"}}]}\n\n',
        b"",
    ],
)
def test_broken_replies_are_asked_for_again(broken: bytes, server: Any) -> None:
    server.answer = lambda body: server.raw(broken) if len(server.asked) % 2 else server.repeat(body)
    engine = Endpoint(server.url, "tiny", concurrency=1, retries=1)
    assert answers(engine, prompts("a"), max_new_tokens=5) == [Completion("You say: a", False)]
    assert (engine.usage.requests, engine.usage.retries) == (1, 1)
    server.answer = lambda body: server.raw(broken)
    with pytest.raises(SafetyNeuronsError, match=re.escape(server.url)):
        answers(engine, prompts("a"), max_new_tokens=5)
    assert len(server.asked) == 4


def test_a_long_wait_is_said_and_not_slept(server: Any) -> None:
    server.answer = lambda _body: server.raw(b'{"error": "slow down"}', 429, {"retry-after": "3600"})
    start = time.monotonic()
    with pytest.raises(SafetyNeuronsError, match=r"wait 60 minutes, until \d\d:\d\d\. Continue then.*slow down"):
        answers(Endpoint(server.url, "tiny"), prompts("a"), max_new_tokens=5)
    assert time.monotonic() - start < 5
    date = "Wed, 21 Oct 2099 07:28:00 GMT"
    server.answer = lambda _body: server.raw(b"slow down", 429, {"retry-after": date})
    with pytest.raises(SafetyNeuronsError, match="accepts no more requests for now"):
        answers(Endpoint(server.url, "tiny", retries=0), prompts("a"), max_new_tokens=5)


def test_prompts_with_broken_text_are_sent(server: Any) -> None:
    found = answers(Endpoint(server.url, "tiny"), prompts("half \ud83d a pair"), max_new_tokens=5)
    assert found == [Completion("You say: half \ufffd a pair", False)]
