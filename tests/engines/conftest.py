"""A server on this machine that does what a test tells it to."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

Body = dict[str, Any]


@dataclass(frozen=True)
class Raw:
    """An answer to the letter: its body, status and further headers."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Drop:
    """No answer: the connection is closed."""


def completion(text: str | None, finish_reason: str = "stop", prompt_tokens: int = 3, tokens: int = 2) -> Body:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], "usage": usage}


def repeat(body: Body) -> Body:
    """What the user said last."""
    said = next(message["content"] for message in reversed(body["messages"]) if message["role"] == "user")
    return completion(f"You say: {said}")


class Server:
    """Answers chat completions as `answer` says, called with the request's body; notes what it was asked."""

    # Tests cannot import this module: they find here what answers are made of.
    raw, drop = Raw, Drop
    completion, repeat = staticmethod(completion), staticmethod(repeat)

    @staticmethod
    def waiting(seconds: float) -> Callable[[Body], Body]:
        """Answers that take their time."""

        def answer(body: Body) -> Body:
            time.sleep(seconds)
            return repeat(body)

        return answer

    def __init__(self) -> None:
        self.answer: Callable[[Body], Body | Raw | Drop] = repeat
        self.models: Body | Raw = {"data": [{"id": "tiny"}]}
        self.asked: list[Body] = []
        self.keys: list[str] = []
        # What clients that take this server for their proxy asked it for.
        self.proxied: list[str] = []
        # The queries of the addresses of all requests.
        self.queries: list[str] = []
        self.now = self.most_at_once = 0
        self.lock = threading.Lock()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def said(self) -> list[str]:
        """The last message of every request."""
        return [body["messages"][-1]["content"] for body in self.asked]

    def start(self) -> None:
        """On the same port as before, where there was one."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def take_path(self) -> None:
                if self.path.startswith("http://"):
                    outer.proxied.append(self.path)
                    self.path = urlsplit(self.path).path
                self.path, _, query = self.path.partition("?")
                outer.queries.append(query)

            def do_GET(self) -> None:
                self.take_path()
                self.give(outer.models if self.path == "/v1/models" else Raw(b"not found", 404))

            def do_CONNECT(self) -> None:
                outer.proxied.append(self.path)
                self.give(outer.answer({}))

            def do_POST(self) -> None:
                self.take_path()
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer.lock:
                    outer.asked.append(body)
                    outer.keys.append(self.headers.get("authorization", ""))
                    outer.now += 1
                    outer.most_at_once = max(outer.most_at_once, outer.now)
                try:
                    found = outer.answer(body) if self.path == "/v1/chat/completions" else Raw(b"not found", 404)
                finally:
                    with outer.lock:
                        outer.now -= 1
                self.give(found)

            def give(self, found: Body | Raw | Drop) -> None:
                if isinstance(found, Drop):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                raw = found if isinstance(found, Raw) else Raw(json.dumps(found).encode())
                self.send_response(raw.status)
                for name, value in {"content-type": "application/json", **raw.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(raw.body)))
                self.end_headers()
                self.wfile.write(raw.body)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that go away in the middle are part of the tests."""

        self.http = Quiet(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Open connections are dropped at the next request."""
        self.answer = lambda _body: Drop()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def no_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    proxies = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]
    for name in ("SAFETY_NEURONS_API_KEY", "OPENAI_API_KEY", *proxies, *map(str.upper, proxies)):
        monkeypatch.delenv(name, raising=False)
