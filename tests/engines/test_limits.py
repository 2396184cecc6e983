"""A response without end: each request is bounded in time and in size, and says what the limit is."""

import gzip
import json
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.engines.endpoint import MAX_REPLY_BYTES, TIMEOUT_SECONDS, Endpoint
from safety_neurons.engines.engine import answers
from safety_neurons.models.chat import Conversation

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
ASKED = [Conversation.of("How is the weather today?")]
Drip = Callable[[Callable[[bytes], None]], None]


def forever(start: bytes, piece: bytes, pause: float) -> Drip:
    def drip(send: Callable[[bytes], None]) -> None:
        send(start)
        while True:
            send(piece)
            time.sleep(pause)

    return drip


@pytest.fixture
def dripping() -> Iterator[Callable[[Drip], str]]:
    """Starts a server that sends what a function tells it to, and returns its address."""
    servers: list[socket.socket] = []

    def start(drip: Drip) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        servers.append(listening)

        def respond(connection: socket.socket) -> None:
            try:
                connection.recv(100_000)
                drip(connection.sendall)
            except OSError:
                pass
            finally:
                connection.close()

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=respond, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/v1"

    yield start
    for one in servers:
        one.close()


@pytest.mark.parametrize(
    "drip",
    [
        forever(HEAD + b"\r\n", b" ", 0.02),
        forever(HEAD + b'content-length: 1000000\r\n\r\n{"choices": "', b"a", 0.02),
        forever(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n{\r\n", 0.02),
        forever(HEAD + b"\r\n", b": keep-alive\n\n", 0.02),
        forever(b"HTTP/1.1 500 Oh\r\n\r\n", b" ", 0.02),
    ],
)
def test_a_response_that_has_begun_ends_with_its_time(drip: Drip, dripping: Callable[[Drip], str]) -> None:
    url = dripping(drip)
    start = time.monotonic()
    with pytest.raises(
        SafetyNeuronsError, match=r"timed out: the request 'How is the weather today\?' had no"
    ) as error:
        answers(Endpoint(url, "m", timeout=0.5), ASKED, max_new_tokens=5)
    assert time.monotonic() - start < 4
    assert url in str(error.value)
    assert "within 0.5 seconds" in str(error.value)
    assert "raise timeout (SAFETY_NEURONS_TIMEOUT)" in str(error.value)


def test_headers_that_never_end_are_tried_again_within_one_deadline(dripping: Callable[[Drip], str]) -> None:
    url = dripping(forever(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", 0.05))
    start = time.monotonic()
    with pytest.raises(SafetyNeuronsError, match=r"within 0\.4 seconds, in each of [23] tries"):
        answers(Endpoint(url, "m", timeout=0.4, retries=2), ASKED, max_new_tokens=5)
    assert time.monotonic() - start < 4
    with pytest.raises(SafetyNeuronsError, match="the request for its models had no complete response"):
        _ = Endpoint(url, timeout=0.2, retries=0).served


def bomb() -> bytes:
    """64 MiB of spaces in 64 KiB."""
    return gzip.compress(b" " * (64 << 20))


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b" " * (8 << 20)),
        ({"content-encoding": "gzip"}, bomb()),
        ({"content-encoding": "deflate"}, zlib.compress(b" " * (64 << 20))),
        # A body that decompresses to nothing is bounded, too.
        ({"content-encoding": "gzip"}, gzip.compress(b"")[:10] + b"\x00\x00\x00\xff\xff" * (1 << 18)),
    ],
)
def test_a_large_response_is_not_taken_in(headers: dict[str, str], body: bytes, server: Any) -> None:
    server.answer = lambda _body: server.raw(body, 200, headers)
    answers_of = Endpoint(server.url, "tiny", max_reply_bytes=1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(
            SafetyNeuronsError, match=r"How is the weather today\?' with more than 1,048,576 bytes"
        ) as error:
            answers(answers_of, ASKED, max_new_tokens=5)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert "raise max_reply_bytes (SAFETY_NEURONS_MAX_REPLY_BYTES)" in str(error.value)
    assert len(server.asked) == 1


def test_a_compressed_answer_within_the_limit_is_read(server: Any) -> None:
    body = json.dumps(server.completion("Yes. " * 1000)).encode()
    for encoding, packed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        server.answer = lambda _body, encoding=encoding, packed=packed: server.raw(
            packed, 200, {"content-encoding": encoding}
        )
        [found] = answers(Endpoint(server.url, "tiny", max_reply_bytes=len(body)), ASKED, max_new_tokens=5)
        assert found.text == "Yes. " * 1000


def test_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Endpoint("http://127.0.0.1:9/v1", "m")
    assert (plain.timeout, plain.max_reply_bytes) == (TIMEOUT_SECONDS, MAX_REPLY_BYTES)
    monkeypatch.setenv("SAFETY_NEURONS_TIMEOUT", "7.5")
    monkeypatch.setenv("SAFETY_NEURONS_MAX_REPLY_BYTES", "1000")
    found = Endpoint("http://127.0.0.1:9/v1", "m")
    assert (found.timeout, found.max_reply_bytes) == (7.5, 1000)
    assert found.identity == plain.identity
    for variable in ("SAFETY_NEURONS_TIMEOUT", "SAFETY_NEURONS_MAX_REPLY_BYTES"):
        for wrong in ("0", "-1", "nan", "inf", "long"):
            monkeypatch.setenv(variable, wrong)
            with pytest.raises(SafetyNeuronsError, match=f"{variable} must be a positive number, not '{wrong}'"):
                Endpoint("http://127.0.0.1:9/v1", "m")
        monkeypatch.delenv(variable)
    with pytest.raises(SafetyNeuronsError, match="timeout must be a positive number"):
        Endpoint("http://127.0.0.1:9/v1", "m", timeout=0)


def test_half_a_surrogate_stops_no_answer(server: Any) -> None:
    body = b'{"choices": [{"message": {"content": "Sure \\ud83d and \\u0000 more."}, "finish_reason": "st\\ud83dop"}]}'
    server.answer = lambda _body: server.raw(body)
    found = answers(Endpoint(server.url, "tiny"), [Conversation.of("a \ud83d"), Conversation.of("b")], max_new_tokens=5)
    assert [one.text for one in found] == ["Sure \ufffd and \ufffd more."] * 2
