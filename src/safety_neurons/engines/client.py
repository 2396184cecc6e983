"""Sends the requests of an endpoint, tries again what may succeed, and reads the replies."""

import functools
import itertools
import json
import random
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import httpx2

from safety_neurons.core.addresses import without_secrets
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.engines.connection import connection_error
from safety_neurons.engines.parameters import Messages, Parameters
from safety_neurons.engines.replies import (
    Reply,
    ReportedError,
    UnreadableError,
    problem_of,
    read_model_names,
    read_reply,
)
from safety_neurons.engines.server import RejectedError, Server, retry_after
from safety_neurons.engines.transfer import LateError, Limits, Response, TooLargeError, Transfer
from safety_neurons.models.chat import Conversation
from safety_neurons.models.quoting import well_formed

T = TypeVar("T")

# Seconds before a request is tried again: the first pause, the longest, and the longest that a server may ask for.
PAUSES = (0.5, 8.0)
LONGEST_WAIT = 120.0


@dataclass
class Usage:
    """Requests and tokens so far; `retries` are those of requests that finally succeeded."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """Cost of the tokens at these prices per million tokens."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


@dataclass(frozen=True)
class Client:
    """Requests to one server, changed to what it was found to accept (`parameters`).

    Args:
        limits: of one try; all tries of a request together have `retries + 1` times that long.
        secrets: what no reply may contain.
        system, template_options: see `Endpoint`.
    """

    transfer: Transfer
    server: Server
    retries: int
    limits: Limits
    secrets: Collection[str] = ()
    parameters: Parameters = field(default_factory=Parameters)
    usage: Usage = field(default_factory=Usage)
    system: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)

    async def model_names(self) -> list[str]:
        """The server's models.

        Raises:
            SafetyNeuronsError: it does not list them.
        """

        names, _ = await self._request("GET", "/models", b"", read_model_names)
        return [without_secrets(name, self.secrets) for name in names]

    async def ask(self, conversation: Conversation, extra: Mapping[str, Any], **settings: Any) -> Reply:
        """One reply; `extra`: fields that no other server needs.

        Raises:
            RejectedError: the server reports a problem.
            SafetyNeuronsError: there is no reply that can be read.
        """
        messages = [{"role": turn.role, "content": well_formed(turn.content)} for turn in conversation.turns]
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": well_formed(self.system)})
        if conversation.prefill:
            messages.append({"role": "assistant", "content": well_formed(conversation.prefill)})
        if self.template_options:
            extra = {**extra, "chat_template_kwargs": dict(self.template_options)}
        while True:
            sent, turns = self.parameters.adjusted(settings), self.parameters.folded(messages)
            try:
                return await self._post(turns, {**sent, **extra})
            except RejectedError as error:
                note = self.parameters.learn(error.problem, sent, turns)
                if note is None:
                    raise
            self.tell(note)

    def tell(self, note: str) -> None:
        """Warn of something about the server, if there is anything to say."""
        if note:
            warnings.warn(f"The server at {self.server.url} {note}", stacklevel=2)

    async def _post(self, messages: Messages, settings: Mapping[str, Any]) -> Reply:
        said = [message["content"] for message in messages]
        body = {"model": well_formed(self.server.model_name), "messages": messages, **settings}
        content = json.dumps(body).encode()
        read = functools.partial(read_reply, said=said)
        reply, retries = await self._request("POST", "/chat/completions", content, read, said)
        self.usage.requests += 1
        self.usage.retries += retries
        self.usage.prompt_tokens += reply.prompt_tokens or 0
        self.usage.completion_tokens += reply.completion_tokens or 0
        return reply.without(self.secrets)

    async def _request(
        self, method: str, path: str, content: bytes, read: Callable[[bytes], T], said: Collection[str] = ()
    ) -> tuple[T, int]:
        """What `read` finds in the response, and the number of retries, within one deadline for all of them.

        Raises:
            RejectedError: the server reports a problem.
            SafetyNeuronsError: there is no reply that can be read.
        """
        deadline = anyio.current_time() + self.limits.seconds * (self.retries + 1)
        for tried in itertools.count():
            wait = None
            left = max(0.0, deadline - anyio.current_time())
            try:
                limits = self.limits._replace(seconds=min(left, self.limits.seconds))
                response = await self.transfer.send(method, path, content, limits)
                return self._read(read, response, said), tried
            except LateError as late:
                error = self.server.late(said, self.limits, tried)
                if late.begun:
                    # The server works on it, and another try would take as long.
                    raise error from None
            except httpx2.TimeoutException:
                error = self.server.late(said, self.limits, tried)
            except TooLargeError:
                raise self.server.too_large(said, self.limits) from None
            except httpx2.RequestError as failed:
                error = connection_error(self.server.url, failed, self.server.proxy, self.server.key)
            except _UnusableError as unusable:
                error, wait = unusable.error, unusable.wait
            pause = _pause(tried) if wait is None else wait
            if tried >= self.retries or anyio.current_time() + pause >= deadline:
                raise error from None
            await anyio.sleep(pause)
        raise AssertionError

    def _read(self, read: Callable[[bytes], T], response: Response, said: Collection[str]) -> T:
        """What `read` finds in a response.

        Raises:
            _UnusableError: another try may help.
            SafetyNeuronsError: it cannot be read.
        """
        error: SafetyNeuronsError
        wait = None
        try:
            if not 200 <= response.status < 300:
                problem = problem_of(response.content, response.status, said).without(self.secrets)
                wait = retry_after(response.headers)
                error, again = self.server.rejected(problem, wait), _may_succeed(response, wait)
            else:
                return read(response.content)
        except UnreadableError as unreadable:
            encoding = response.headers.get("content-encoding", "")
            error = self.server.not_understood(unreadable, response.content, response.url, encoding)
            again = unreadable.broken
        except ReportedError as reported:
            error, again = self.server.rejected(reported.problem.without(self.secrets)), reported.problem.temporary
        if again:
            raise _UnusableError(error, wait if wait is not None and 0 < wait <= LONGEST_WAIT else None) from None
        raise error from None


class _UnusableError(Exception):
    """A response that may be better the next time, the error if it is not, and the seconds that the server asks for."""

    def __init__(self, error: SafetyNeuronsError, wait: float | None) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


def _may_succeed(response: Response, wait: float | None) -> bool:
    """Whether a request may succeed later that was answered with a status of an error."""
    if wait is not None and wait > LONGEST_WAIT:
        return False
    # Not a standard, but some gateways say it.
    told = response.headers.get("x-should-retry", "")
    if told in ("true", "false"):
        return told == "true"
    return response.status in (408, 409, 429) or response.status >= 500


def _pause(tried: int) -> float:
    """Seconds before the next try; not the same for all requests that fail together."""
    return min(PAUSES[0] * 2 ** min(tried, 10), PAUSES[1]) * (1 - 0.25 * random.random())
