"""An endpoint: what it asks, how it comes back from failures, and what it says when it does not."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.endpoint import Endpoint
from safety_neurons.engines.engine import CachedAnswer, CachedEngine, answers, weights_of
from safety_neurons.models.chat import Conversation, Turn
from safety_neurons.models.generate import Completion, Sampling

KEY = "sk-this-is-a-secret-0123456789"


def questions(count: int) -> list[Conversation]:
    return [Conversation.of(f"question {number}") for number in range(count)]


def answer_to(number: int) -> Completion:
    return Completion(f"You say: question {number}", False)


def test_answers_belong_to_their_conversations(server: Any) -> None:
    found = answers(Endpoint(server.url), questions(20), max_new_tokens=5)
    assert found == [answer_to(number) for number in range(20)]
    assert sorted(server.said()) == sorted(f"question {number}" for number in range(20))


def test_answers_come_as_they_are_finished(server: Any) -> None:
    slow = threading.Event()

    def answer(body: Any) -> Any:
        if body["messages"][-1]["content"] == "question 0":
            slow.wait(10)
        return server.repeat(body)

    server.answer = answer
    found = Endpoint(server.url, "tiny", concurrency=2).answer(questions(6), max_new_tokens=5)
    assert {next(found)[0] for _ in range(5)} == {1, 2, 3, 4, 5}
    slow.set()
    assert list(found) == [(0, answer_to(0))]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_than_allowed_run_at_a_time(concurrency: int, server: Any) -> None:
    server.answer = server.waiting(0.05)
    list(Endpoint(server.url, "tiny", concurrency=concurrency).answer(questions(9), max_new_tokens=5))
    assert server.most_at_once == concurrency


def test_a_request_holds_what_is_asked_and_nothing_else(server: Any) -> None:
    conversation = Conversation((Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")))
    engine = Endpoint(server.url, "tiny")
    server.answer = lambda body: server.completion(f"Drawn: {body.get('seed')}")
    assert answers(engine, [conversation], max_new_tokens=7) == [Completion("Drawn: None", False)]
    for seed in (5, 6):
        drawn = answers(engine, [conversation], max_new_tokens=7, sampling=Sampling(0.7, seed))
        assert drawn == [Completion(f"Drawn: {seed}", False)]
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    plain = {"model": "tiny", "messages": messages, "max_tokens": 7, "temperature": 0.0}
    assert [body for body in server.asked if body["messages"] == messages] == [
        plain,
        plain | {"temperature": 0.7, "seed": 5, "top_p": 1.0},
        plain | {"temperature": 0.7, "seed": 6, "top_p": 1.0},
    ]
    # Whether the server draws is tried out once, with three requests.
    assert len(server.asked) == 3 + 3


def test_servers_that_do_not_draw(server: Any) -> None:
    with pytest.raises(CannotRunError, match=r"does not sample.*do_sample"):
        answers(Endpoint(server.url, "tiny"), questions(3), max_new_tokens=7, sampling=Sampling(0.7, 5))
    assert set(server.said()) == {"Tell me a story."}


def test_models_that_think_first_draw_too(server: Any) -> None:
    """They do not get to their answer within the few tokens that are tried."""

    def answer(body: Any) -> Any:
        found = server.completion(None, "length")
        found["choices"][0]["message"]["reasoning_content"] = f"Well, {body['seed']}"
        return found

    server.answer = answer
    engine = Endpoint(server.url, "tiny")
    with pytest.warns(UserWarning, match="reasons before it answers"):
        found = answers(engine, questions(1), max_new_tokens=7, sampling=Sampling(0.7, 5))
    assert found == [Completion("", True, "Well, 5")]
    assert found[0].unscored


def test_system_prompts_and_template_options_are_sent(server: Any) -> None:
    engine = Endpoint(server.url, "tiny", system="Be kind.", template_options={"enable_thinking": False})
    answers(engine, [Conversation.of("a"), Conversation.of("b", system="Be brief.")], max_new_tokens=7)
    systems = {body["messages"][-1]["content"]: body["messages"][:-1] for body in server.asked}
    assert systems == {
        "a": [{"role": "system", "content": "Be kind."}],
        "b": [{"role": "system", "content": "Be brief."}],
    }
    assert [body["chat_template_kwargs"] for body in server.asked] == [{"enable_thinking": False}] * 2


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("Yes", "stop", Completion("Yes", False)),
        ("Yes", "length", Completion("Yes", True)),
        (None, "stop", Completion("", False)),
        (" Yes\n", "content_filter", Completion(" Yes\n", False, outcome="blocked", reason="content_filter")),
    ],
)
def test_what_an_answer_is(text: str, reason: str, expected: Completion, server: Any) -> None:
    server.answer = lambda _body: server.completion(text, reason)
    assert answers(Endpoint(server.url, "tiny"), questions(1), max_new_tokens=5) == [expected]


def test_what_is_done_is_not_asked(server: Any) -> None:
    engine = Endpoint(server.url, "tiny")
    assert dict(engine.answer(questions(4), max_new_tokens=5, done=frozenset({0, 2}))) == {
        1: answer_to(1),
        3: answer_to(3),
    }
    assert list(engine.answer(questions(2), max_new_tokens=5, done=frozenset({0, 1}))) == []
    assert sorted(server.said()) == ["question 1", "question 3"]


def once(failure: Any, then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The failure at the first request, and then as it should be."""
    failed: list[Any] = []

    def answer(body: Any) -> Any:
        if not failed:
            failed.append(body)
            return failure
        return then(body)

    return answer


def test_a_full_queue_is_waited_for_as_long_as_it_says(server: Any) -> None:
    server.answer = once(server.raw(b'{"error": "busy"}', 429, {"retry-after": "1.3"}), server.repeat)
    engine, start = Endpoint(server.url, "tiny"), time.monotonic()
    assert answers(engine, questions(1), max_new_tokens=5) == [answer_to(0)]
    # Without the header the first wait is half a second at most.
    assert time.monotonic() - start >= 1.3
    assert (engine.usage.requests, engine.usage.retries) == (1, 1)


@pytest.mark.parametrize("failure", ["drop", "500"])
def test_a_request_that_fails_once_is_asked_again(failure: str, server: Any) -> None:
    server.answer = once(server.drop() if failure == "drop" else server.raw(b"no", 500), server.repeat)
    assert answers(Endpoint(server.url, "tiny"), questions(3), max_new_tokens=5) == [answer_to(n) for n in range(3)]
    assert len(server.asked) == 4


def test_an_answer_that_is_late_is_asked_for_again(server: Any) -> None:
    late = threading.Event()

    def answer(body: Any) -> Any:
        if len(server.asked) == 1:
            late.wait(10)
        return server.repeat(body)

    server.answer = answer
    engine = Endpoint(server.url, "tiny", timeout=0.4)
    assert answers(engine, questions(1), max_new_tokens=5) == [answer_to(0)]
    late.set()
    assert engine.usage.retries == 1


def test_what_came_before_a_failure_is_had(server: Any) -> None:
    """The third request fails for good; it is asked as often as was allowed, and nothing after it."""

    def answer(body: Any) -> Any:
        return server.raw(b"out of luck", 503) if "2" in body["messages"][-1]["content"] else server.repeat(body)

    server.answer = answer
    found = Endpoint(server.url, "tiny", concurrency=1, retries=1).answer(questions(5), max_new_tokens=5)
    assert [next(found), next(found)] == [(0, answer_to(0)), (1, answer_to(1))]
    with pytest.raises(SafetyNeuronsError, match=r"failed repeatedly.*out of luck") as error:
        next(found)
    assert server.url in str(error.value)
    assert server.said() == ["question 0", "question 1", "question 2", "question 2"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>Welcome</html>", "Welcome"),
        (b"", "Its response was empty"),
        (b'{"choices": []}', "choices"),
        (b'{"choices": [{"message": "Hi"}]}', "message"),
        (b"[1, 2", r"\[1, 2"),
        (b"\xff\xfe", "Its message"),
        (b"\x1b[2Jgone", r"Its message: \?\[2Jgone$"),
        (b"word " * 1000, r"word +\.\.\.$"),
    ],
)
def test_bodies_that_are_no_answer(body: bytes, said: str, server: Any) -> None:
    server.answer = lambda _body: server.raw(body)
    with pytest.raises(SafetyNeuronsError, match=said) as error:
        answers(Endpoint(server.url, "tiny", retries=0), questions(3), max_new_tokens=5)
    assert server.url in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "rejected a request.*too long"),
        (403, "without an API key.*: set SAFETY_NEURONS_API_KEY"),
        (404, "no model called 'tiny'.*/v1"),
        (429, "lower concurrency"),
        (503, "failed repeatedly"),
    ],
)
def test_refusals_of_the_server(status: int, said: str, server: Any) -> None:
    server.answer = lambda _body: server.raw(b'{"error": {"message": "too long"}}', status)
    with pytest.raises(SafetyNeuronsError, match=said):
        answers(Endpoint(server.url, "tiny", retries=0), questions(1), max_new_tokens=5)


def test_servers_that_are_not_there_or_too_slow(server: Any) -> None:
    server.answer = server.waiting(1.0)
    with pytest.raises(SafetyNeuronsError, match=r"timed out.*timeout"):
        answers(Endpoint(server.url, "tiny", retries=0, timeout=0.2), questions(1), max_new_tokens=5)
    server.stop()
    with pytest.raises(SafetyNeuronsError, match=r"is unreachable.*connection attempts failed"):
        answers(Endpoint(server.url, "tiny", retries=0), questions(1), max_new_tokens=5)
    with pytest.raises(SafetyNeuronsError, match="is unreachable"):
        _ = Endpoint(server.url, retries=0).served


@pytest.mark.parametrize("variable", ["SAFETY_NEURONS_API_KEY", "OPENAI_API_KEY"])
def test_the_key_is_sent_and_nowhere_else(
    variable: str, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the server itself repeats it."""
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv(variable, KEY)
    engine = CachedEngine(Endpoint(server.url, retries=0), JsonlCache.read(tmp_path / "answers.jsonl", CachedAnswer))
    answers(engine, questions(1), max_new_tokens=5)
    assert server.keys == [f"Bearer {KEY}"]
    for body, status in ((f"no such key: {KEY}", 401), (f"{KEY} is not welcome", 200), (f"late, {KEY}", 500)):
        server.answer = lambda _body, body=body, status=status: server.raw(body.encode(), status)
        with pytest.raises(SafetyNeuronsError, match=r"\[key\]") as error:
            answers(engine, [Conversation.of("another")], max_new_tokens=5)
        assert KEY not in str(error.value)
        assert error.value.__cause__ is None
    assert KEY not in repr(engine)
    assert KEY not in (tmp_path / "answers.jsonl").read_text()
    assert KEY not in engine.identity


def test_keys_that_cannot_be_sent_are_not_shown(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_API_KEY", f"{KEY}\nand more")
    with pytest.raises(SafetyNeuronsError, match="cannot be sent") as error:
        answers(Endpoint(server.url), questions(1), max_new_tokens=5)
    assert KEY not in str(error.value)
    monkeypatch.setenv("SAFETY_NEURONS_API_KEY", f" {KEY}\n")
    answers(Endpoint(server.url), questions(1), max_new_tokens=5)
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{KEY}@127.0.0.1 /v1",
        f"http://user:{KEY}@",
        f"ftp://user:{KEY}@127.0.0.1/v1",
        f"http://user:{KEY}@127.0.0.1:port/v1",
        "127.0.0.1:8000/v1",
        "ftp://127.0.0.1/v1",
        "http://127.0.0.1:port/v1",
        "http://[::1/v1",
        "http://a b/v1",
        "http:///v1",
        "",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"like http://127\.0\.0\.1:8000/v1.*SAFETY_NEURONS_API_KEY") as error:
        Endpoint(url)
    assert KEY not in str(error.value)


def test_the_only_model_is_taken(server: Any) -> None:
    engine = Endpoint(server.url)
    assert engine.name == "tiny"
    answers(engine, questions(1), max_new_tokens=5)
    assert server.asked[0]["model"] == "tiny"


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"data": [{"id": "one"}, {"id": "two"}]}, r"2 models \(one, two\): set model_name"),
        ({"data": []}, "lists no models: set model_name"),
        ({"models": []}, "not respond like an OpenAI-compatible"),
    ],
)
def test_which_model_is_meant_has_to_be_clear(models: Any, said: str, server: Any) -> None:
    server.models = models
    with pytest.raises(SafetyNeuronsError, match=said):
        answers(Endpoint(server.url), questions(1), max_new_tokens=5)
    assert server.asked == []


def test_a_url_without_the_path_of_the_api(server: Any) -> None:
    with pytest.raises(SafetyNeuronsError, match="/v1"):
        _ = Endpoint(server.url.removesuffix("/v1")).served


def test_closing_cancels_what_is_asked_and_what_waits(server: Any) -> None:
    server.answer = lambda body: server.waiting(5)(body) if len(server.asked) > 1 else server.repeat(body)
    before, start = threading.active_count(), time.monotonic()
    found = Endpoint(server.url, "tiny", concurrency=2).answer(questions(50), max_new_tokens=5)
    next(found)
    found.close()
    assert time.monotonic() - start < 4
    assert len(server.asked) <= 3
    # Those of the server, one a connection, may still be there.
    assert threading.active_count() - before <= 2


def test_an_interrupt_stops_at_once(server: Any) -> None:
    server.answer = server.waiting(20)
    me = threading.main_thread().ident
    assert me is not None

    def interrupt() -> None:
        while len(server.asked) < 2:
            time.sleep(0.05)
        signal.pthread_kill(me, signal.SIGINT)

    # The workers of a test run that is spread over processes ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            list(Endpoint(server.url, "tiny", concurrency=2).answer(questions(50), max_new_tokens=5))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 10
    assert len(server.asked) == 2


def test_callers_may_be_in_an_event_loop(server: Any) -> None:
    """As all are in a notebook."""

    async def asked() -> list[Completion]:
        return answers(Endpoint(server.url), questions(2), max_new_tokens=5)

    assert asyncio.run(asked()) == [answer_to(0), answer_to(1)]


def test_an_evaluation_goes_on_where_the_server_died(server: Any, tmp_path: Path) -> None:
    def dying(body: Any) -> Any:
        if len(server.asked) > 4:
            server.answer = lambda _body: server.drop()
            return server.drop()
        return server.repeat(body)

    def kept(name: str) -> CachedEngine:
        # A process that begins anew reads the file.
        return CachedEngine(
            Endpoint(server.url, "tiny", concurrency=2, retries=0), JsonlCache.read(tmp_path / name, CachedAnswer)
        )

    expected = answers(kept("undisturbed"), questions(9), max_new_tokens=5)
    server.asked.clear()
    server.answer = dying
    with pytest.raises(SafetyNeuronsError, match="drops the connection"):
        answers(kept("killed"), questions(9), max_new_tokens=5)
    server.stop()
    had = [
        json.loads(line)["text"].removeprefix("You say: ") for line in (tmp_path / "killed").read_text().splitlines()
    ]
    assert 0 < len(had) <= 4

    server.start()
    server.answer = server.repeat
    server.asked.clear()
    assert answers(kept("killed"), questions(9), max_new_tokens=5) == expected
    assert sorted(server.said()) == sorted({f"question {number}" for number in range(9)} - set(had))
    lines = [sorted((tmp_path / name).read_text().splitlines()) for name in ("killed", "undisturbed")]
    assert lines[0] == lines[1]


def test_usage_is_what_the_server_counts(server: Any) -> None:
    engine = Endpoint(server.url, "tiny")
    server.answer = lambda _body: server.completion("Yes", prompt_tokens=2000, tokens=100)
    answers(engine, questions(3), max_new_tokens=5)
    assert (engine.usage.requests, engine.usage.prompt_tokens, engine.usage.completion_tokens) == (3, 6000, 300)
    assert engine.usage.cost(0.5, 2.0) == pytest.approx(6000 * 0.5e-6 + 300 * 2e-6)
    server.answer = lambda _body: server.completion("Yes") | {"usage": None}
    answers(engine, questions(1), max_new_tokens=5)
    assert (engine.usage.requests, engine.usage.prompt_tokens) == (4, 6000)


def test_identities_are_those_of_the_model_and_the_server() -> None:
    url = "http://127.0.0.1:1/v1"
    same = {
        Endpoint(url, "a").identity,
        Endpoint(url + "/", "a").identity,
        Endpoint(url, "a", concurrency=2, timeout=3, retries=0, prefill="unsupported").identity,
    }
    others = {
        Endpoint(url, "b").identity,
        Endpoint(url.replace("1/v1", "2/v1"), "a").identity,
        Endpoint(url, "a", system="Be kind.").identity,
        Endpoint(url, "a", template_options={"enable_thinking": False}).identity,
    }
    assert len(same) == 1
    assert len(same | others) == 5


def test_there_are_no_weights() -> None:
    engine = Endpoint("http://127.0.0.1:1/v1", "far")
    with pytest.raises(CannotRunError, match=r"SafeTuning needs the model.s weights, but far provides"):
        weights_of(engine, "SafeTuning")
    with pytest.raises(CannotRunError, match="the guard changes the model, but far is behind a server"):
        engine.under("the guard")
    with pytest.raises(SafetyNeuronsError, match="concurrency must be at least 1"):
        Endpoint("http://127.0.0.1:1/v1", concurrency=0)
