"""The engine of a model behind an OpenAI-compatible server: vLLM, SGLang, TGI, llama.cpp, `transformers serve`.

A server returns text only. What it adds by itself (a system prompt of the chat template, penalties of the generation
config) is invisible here, and its answers may vary slightly with its load.
"""

import functools
import itertools
import queue
import warnings
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.core.files import fingerprint
from safety_neurons.engines.connection import api_key, check_url, open_client, proxy_for, shown
from safety_neurons.engines.parameters import Parameters
from safety_neurons.engines.replies import (
    Reply,
    ReportedError,
    UnreadableError,
    read_model_names,
    read_reply,
    well_formed,
)
from safety_neurons.engines.server import CONTINUED, RejectedError, Server, check_sampling, repeats_prefill
from safety_neurons.models.chat import Conversation
from safety_neurons.models.generate import Completion, Sampling

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")

# Seconds before a request is tried again whose response could not be used: the first pause, and the longest.
PAUSES = (0.5, 8.0)
# What shows that a server accepts requests, when it rejects the first prompt.
CONTROL = "Hello"


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
class Endpoint:
    """A model behind the server at `url` (usually ending in /v1).

    The API key comes from the environment: SAFETY_NEURONS_API_KEY, or else OPENAI_API_KEY. A request that a content
    filter stops is "blocked", and one that the server rejects while it accepts others is "not run": too long, mostly.

    Args:
        model_name: Default: the server's only model.
        concurrency: maximum number of simultaneous requests.
        timeout: in seconds, per request.
        retries: maximum number of retries after dropped connections, timeouts, full queues (respecting Retry-After up
            to two minutes), server errors, and responses that are cut off.
        prefill: "continue" sends a prefill with `continue_final_message`, after a few one-token requests have shown
            that the server supports it; "unsupported" makes it an error.
        system: the system prompt of conversations that have none.
        template_options: passed to the chat template.
        reasoning_tokens: tokens added to the limit of every answer, once an answer has ended inside its reasoning; an
            answer that ends there again is returned without text.
        usage: adds up the server's token counts.
        parameters: what the server has been found to accept.
    """

    url: str
    model_name: str | None = None
    concurrency: int = 8
    timeout: float = 600.0
    retries: int = 5
    prefill: Literal["continue", "unsupported"] = "continue"
    system: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    reasoning_tokens: int = 1024
    usage: Usage = field(default_factory=Usage, compare=False)
    parameters: Parameters = field(default_factory=Parameters, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_url(self.url)
        if self.concurrency < 1:
            raise SafetyNeuronsError(f"concurrency must be at least 1, not {self.concurrency}.")
        if self.reasoning_tokens < 0:
            raise SafetyNeuronsError(f"reasoning_tokens must not be negative, as {self.reasoning_tokens} is.")

    @property
    def name(self) -> str:
        return self.served

    @property
    def identity(self) -> str:
        # With the URL, as servers use the same name for other weights, precisions or templates.
        url = self.url.rstrip("/")
        return fingerprint("endpoint", url, self.served, self.system, dict(self.template_options))

    @property
    def change(self) -> str:
        """Nothing is changed in a model behind a server."""
        return ""

    @property
    def model(self) -> None:
        """None: the weights are on the server."""

    def under(self, change: str) -> NoReturn:
        raise CannotRunError(f"{change} changes the model, but {self.name} is behind a server.")

    @functools.cached_property
    def served(self) -> str:
        """The server's name for the model.

        Raises:
            SafetyNeuronsError: `model_name` is None and the server does not list exactly one model.
        """
        if self.model_name is not None:
            return self.model_name
        names = self._wait_for(self._names)
        if len(names) != 1:
            several = shown(", ".join(names), api_key())
            listed = f"has {len(names)} models ({several})" if names else "lists no models"
            raise SafetyNeuronsError(f"The server at {self.url} {listed}: set model_name.")
        return names[0]

    @functools.cached_property
    def repeats_prefill(self) -> bool:
        """Whether the server repeats the prefill in its answer.

        Raises:
            CannotRunError: the server does not support prefill, or it cannot be tested.
        """
        if self.prefill == "unsupported":
            raise CannotRunError(f"Prefill is disabled for the server at {self.url}.")

        async def work(client: "AsyncOpenAI") -> bool:
            return await repeats_prefill(functools.partial(self._ask, client), self.url)

        return self._wait_for(work)

    @functools.cached_property
    def samples(self) -> Literal[True]:
        """Always True.

        Raises:
            CannotRunError: the server does not sample.
        """

        async def work(client: "AsyncOpenAI") -> None:
            await check_sampling(functools.partial(self._ask, client), self.url, self.reasoning_tokens)

        self._wait_for(work)
        return True

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Generator[tuple[int, Completion], None, None]:
        """Yield (index, the completion after the prefill) as answers arrive; closing it cancels the open requests.

        Raises:
            SafetyNeuronsError: a request failed; earlier answers have been yielded.
            CannotRunError: the server does not support the requested prefill or sampling.
        """
        asked = [index for index in range(len(conversations)) if index not in done]
        if not asked:
            return
        repeats = any(conversations[index].prefill for index in asked) and self.repeats_prefill
        finished: queue.SimpleQueue[tuple[int, Completion] | None] = queue.SimpleQueue()
        settings: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": 0.0}
        if sampling is not None and self.samples:
            # The full distribution, which the server's settings might truncate.
            settings |= {"temperature": sampling.temperature, "seed": sampling.seed, "top_p": 1.0}

        async def work(client: "AsyncOpenAI") -> None:
            waiting = iter(asked)
            exchange = _Exchange(self, client, settings, repeats)

            async def take() -> None:
                for index in waiting:
                    finished.put((index, await exchange.completion(conversations[index])))

            async with anyio.create_task_group() as group:
                for _ in range(min(self.concurrency, len(asked))):
                    group.start_soon(take)

        # A separate thread, as the caller may be in an event loop (a notebook). Leaving this block (an error, Ctrl-C,
        # closing the generator) cancels the requests.
        with start_blocking_portal() as portal:
            future = portal.start_task_soon(self._with_client, work)
            future.add_done_callback(lambda _future: finished.put(None))
            while (item := finished.get()) is not None:
                yield item
            future.result()

    def _wait_for(self, work: Callable[["AsyncOpenAI"], Awaitable[T]]) -> T:
        with start_blocking_portal() as portal:
            return portal.call(self._with_client, work)

    async def _with_client(self, work: Callable[["AsyncOpenAI"], Awaitable[T]]) -> T:
        client = open_client(self.url, key=api_key(), timeout=self.timeout, retries=self.retries)
        async with client:
            try:
                return await work(client)
            except ExceptionGroup as group:
                # The first failure ends the others.
                raise group.exceptions[0] from None

    def _server(self, model_name: str) -> Server:
        return Server(self.url, model_name, proxy_for(self.url), api_key())

    async def _names(self, client: "AsyncOpenAI") -> list[str]:
        server = self._server("")

        async def get() -> tuple[list[str], int]:
            with server.explained():
                raw = await client.models.with_raw_response.list()
            return self._read(server, read_model_names, raw), raw.retries_taken

        return (await self._again(get))[0]

    async def _ask(
        self, client: "AsyncOpenAI", conversation: Conversation, extra: Mapping[str, Any], **settings: Any
    ) -> Reply:
        """One reply, after the request was changed to what the server accepts.

        Raises:
            RejectedError: the server reports a problem.
            SafetyNeuronsError: there is no reply that can be read.
        """
        messages = [{"role": turn.role, "content": well_formed(turn.content)} for turn in conversation.turns]
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if conversation.prefill:
            messages.append({"role": "assistant", "content": conversation.prefill})
        if self.template_options:
            extra = {**extra, "chat_template_kwargs": dict(self.template_options)}
        while True:
            sent, turns = self.parameters.adjusted(settings), self.parameters.folded(messages)
            try:
                return await self._post(client, turns, extra, sent)
            except RejectedError as error:
                note = self.parameters.learn(error.problem, sent, turns)
                if note is None:
                    raise
            self._tell(note)

    async def _post(
        self, client: "AsyncOpenAI", messages: list[dict[str, str]], extra: Mapping[str, Any], settings: dict[str, Any]
    ) -> Reply:
        create: Any = client.chat.completions.with_raw_response.create
        server = self._server(self.served)
        said = [message["content"] for message in messages]

        async def post() -> tuple[Reply, int]:
            with server.explained(said):
                raw = await create(model=self.served, messages=messages, extra_body=extra, **settings)
            return self._read(server, functools.partial(read_reply, said=said), raw), raw.retries_taken

        reply, retries = await self._again(post)
        self.usage.requests += 1
        self.usage.retries += retries
        self.usage.prompt_tokens += reply.prompt_tokens or 0
        self.usage.completion_tokens += reply.completion_tokens or 0
        return reply

    def _read(self, server: Server, read: Callable[[bytes], T], raw: Any) -> T:
        """What `read` finds in a response.

        Raises:
            _BrokenError: another try may help.
            SafetyNeuronsError: it cannot be read.
        """
        try:
            return read(raw.content)
        except UnreadableError as unreadable:
            error = server.not_understood(unreadable, raw.content, str(raw.url))
            again = unreadable.broken
        except ReportedError as reported:
            error, again = server.rejected(reported.problem), reported.problem.temporary
        if again:
            raise _BrokenError(error) from None
        raise error from None

    async def _again(self, work: Callable[[], Awaitable[tuple[T, int]]]) -> tuple[T, int]:
        """The result of `work` and its retries, after it was tried again while its response was broken."""
        for tried in itertools.count():
            try:
                result, retries = await work()
                return result, retries + tried
            except _BrokenError as broken:
                if tried >= self.retries:
                    raise broken.error from None
            await anyio.sleep(min(PAUSES[0] * 2**tried, PAUSES[1]))
        raise AssertionError

    def _tell(self, note: str) -> None:
        if note:
            warnings.warn(f"The server at {self.url} {note}", stacklevel=2)


class _BrokenError(Exception):
    """A response that may be whole the next time, and the error if it is not."""

    def __init__(self, error: SafetyNeuronsError) -> None:
        super().__init__(str(error))
        self.error = error


class _Exchange:
    """The requests of one call of `Endpoint.answer`, which have their settings in common."""

    def __init__(self, endpoint: Endpoint, client: "AsyncOpenAI", settings: Mapping[str, Any], repeats: bool) -> None:
        self.endpoint, self.client, self.settings, self.repeats = endpoint, client, settings, repeats
        # Requests without and with a prefill that the server has accepted.
        self.accepted = [0, 0]
        self.lock = anyio.Lock()

    async def completion(self, conversation: Conversation) -> Completion:
        """What became of a request.

        Raises:
            SafetyNeuronsError: the server fails, or rejects every request.
        """
        prefill = bool(conversation.prefill)
        before = self.accepted[prefill]
        try:
            found = await self._completion(conversation)
        except RejectedError as error:
            problem = error.problem
            if problem.filtered:
                return Completion("", False, outcome="blocked", reason=shown(problem.filtered, api_key()))
            if not problem.concerns_prompt:
                raise
            if not await self._accepts_others(prefill, before):
                if problem.too_long:
                    raise SafetyNeuronsError(
                        f"{error} The prompt {CONTROL!r} is too long, too: shorter answers (max_new_tokens) may fit."
                    ) from None
                raise
            return Completion("", False, outcome="not run", reason=shown(problem.summary, api_key()))
        self.accepted[prefill] += 1
        return found

    async def _accepts_others(self, prefill: bool, before: int) -> bool:
        """Whether the server accepts other requests of this kind now; it has, if there are more than `before`."""
        async with self.lock:
            if self.accepted[prefill] == before:
                try:
                    await self._reply(Conversation.of(CONTROL, CONTROL if prefill else ""), self._limit)
                except RejectedError:
                    return False
                self.accepted[prefill] += 1
            return True

    @property
    def _limit(self) -> int:
        limit = self.settings["max_tokens"]
        assert isinstance(limit, int)
        return limit

    async def _reply(self, conversation: Conversation, tokens: int) -> Reply:
        extra = CONTINUED if conversation.prefill else {}
        return await self.endpoint._ask(self.client, conversation, extra, **{**self.settings, "max_tokens": tokens})

    async def _completion(self, conversation: Conversation) -> Completion:
        """The answer, with room for reasoning if the server is known to reason."""
        limit, parameters = self._limit, self.endpoint.parameters
        tokens = limit + parameters.reasoning_tokens
        try:
            reply = await self._reply(conversation, tokens)
        except RejectedError as error:
            if tokens == limit or not error.problem.too_long:
                raise
            # The room for reasoning may be what does not fit.
            reply = await self._reply(conversation, limit)
        else:
            more = self.endpoint.reasoning_tokens
            if tokens == limit and reply.unfinished and more:
                if parameters.reasoning_tokens == 0:
                    parameters.reasoning_tokens = more
                    self.endpoint._tell(f"reasons before it answers: its answers get {more:,} tokens more for that.")
                try:
                    reply, tokens = await self._reply(conversation, limit + more), limit + more
                except RejectedError as error:
                    if not error.problem.too_long:
                        raise
        parted = reply.parted(conversation.prefill if self.repeats else "")
        # A server that does not say why it stopped has stopped at the limit if it wrote that many tokens.
        cut_off = reply.cut_off or parted.unfinished or (not reply.finish and reply.completion_tokens == tokens)
        if reply.filtered:
            return Completion(parted.answer, cut_off, parted.reasoning, "blocked", shown(reply.filtered, api_key()))
        return Completion(parted.answer, cut_off, parted.reasoning)
