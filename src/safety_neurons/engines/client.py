"""Sends the requests of an endpoint, tries again what may succeed, and reads the replies."""

import functools
import itertools
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.engines.parameters import Messages, Parameters
from safety_neurons.engines.replies import (
    Reply,
    ReportedError,
    UnreadableError,
    read_model_names,
    read_reply,
    well_formed,
)
from safety_neurons.engines.server import RejectedError, Server
from safety_neurons.models.chat import Conversation

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")

# Seconds before a request is tried again whose response could not be used: the first pause, and the longest.
PAUSES = (0.5, 8.0)


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
        system, template_options: see `Endpoint`.
        retries: of requests with a response that cannot be used; `client` itself tries again after other failures.
    """

    client: "AsyncOpenAI"
    server: Server
    retries: int
    parameters: Parameters = field(default_factory=Parameters)
    usage: Usage = field(default_factory=Usage)
    system: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)

    async def model_names(self) -> list[str]:
        """The server's models.

        Raises:
            SafetyNeuronsError: it does not list them.
        """

        async def get() -> tuple[list[str], int]:
            with self.server.explained():
                raw = await self.client.models.with_raw_response.list()
            return self._read(read_model_names, raw), raw.retries_taken

        return (await self._again(get))[0]

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
        # All settings are passed on as they are: the client would treat a stream in a way of its own.
        create: Any = self.client.chat.completions.with_raw_response.create
        said = [message["content"] for message in messages]

        async def post() -> tuple[Reply, int]:
            with self.server.explained(said):
                raw = await create(model=self.server.model_name, messages=messages, extra_body=settings)
            return self._read(functools.partial(read_reply, said=said), raw), raw.retries_taken

        reply, retries = await self._again(post)
        self.usage.requests += 1
        self.usage.retries += retries
        self.usage.prompt_tokens += reply.prompt_tokens or 0
        self.usage.completion_tokens += reply.completion_tokens or 0
        return reply

    def _read(self, read: Callable[[bytes], T], raw: Any) -> T:
        """What `read` finds in a response.

        Raises:
            _UnusableError: another try may help.
            SafetyNeuronsError: it cannot be read.
        """
        error: SafetyNeuronsError
        try:
            return read(raw.content)
        except UnreadableError as unreadable:
            encoding = raw.headers.get("content-encoding", "")
            error = self.server.not_understood(unreadable, raw.content, str(raw.url), encoding)
            again = unreadable.broken
        except ReportedError as reported:
            error, again = self.server.rejected(reported.problem), reported.problem.temporary
        if again:
            raise _UnusableError(error) from None
        raise error from None

    async def _again(self, work: Callable[[], Awaitable[tuple[T, int]]]) -> tuple[T, int]:
        """The result of `work` and the number of its retries, tried again while the response cannot be used."""
        for tried in itertools.count():
            try:
                result, retries = await work()
                return result, retries + tried
            except _UnusableError as unusable:
                if tried >= self.retries:
                    raise unusable.error from None
            await anyio.sleep(min(PAUSES[0] * 2**tried, PAUSES[1]))
        raise AssertionError


class _UnusableError(Exception):
    """A response that may be better the next time, and the error if it is not."""

    def __init__(self, error: SafetyNeuronsError) -> None:
        super().__init__(str(error))
        self.error = error
