"""The engine that is a model behind an OpenAI-compatible server: vLLM, SGLang, TGI, llama.cpp, `transformers serve`.

Such a server answers with text alone. What it adds by itself (a system prompt of the chat template, penalties of the
model's generation settings) is not seen here, and its answers may change a little with what else it computes.
"""

import functools
import os
import queue
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

import anyio
from anyio.from_thread import start_blocking_portal
from pydantic import ValidationError

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.core.files import fingerprint
from safety_neurons.engines.server import (
    CONTINUED,
    Reply,
    ServedModels,
    explained,
    must_draw,
    not_understood,
    repeats_prefill,
    shown,
)
from safety_neurons.models.chat import Conversation
from safety_neurons.models.generate import Completion, Sampling

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")

KEY_VARIABLES = ("SAFETY_NEURONS_API_KEY", "OPENAI_API_KEY")
CONNECT_SECONDS = 10.0


@dataclass
class Usage:
    """What was asked of a server so far. `retries` are those of requests that were answered in the end."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """What the tokens cost, at prices per million of them."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


@dataclass(frozen=True)
class Endpoint:
    """Asks the server at `url` (it ends in /v1, mostly) with up to `concurrency` requests at a time.

    `model_name` may be left out where the server has one model. The key comes from the environment alone:
    SAFETY_NEURONS_API_KEY, or else OPENAI_API_KEY. A request is tried again up to `retries` times after dropped
    connections, timeouts of `timeout` seconds, full queues (as long as Retry-After says) and failures of the server.
    `system` goes before conversations that bring no system prompt; `template_options` are passed to the chat template.

    Answers that are begun (`Conversation.prefill`) are asked for with `continue_final_message`, once a few requests of
    one token have shown that the server goes on with what was begun; with `prefill="unsupported"` none is asked for.
    Before answers are drawn it is tried out whether the server draws at all.
    A server's own content filter counts as its answer. Its counts of tokens are added up in `usage`.
    """

    url: str
    model_name: str | None = None
    concurrency: int = 8
    timeout: float = 600.0
    retries: int = 5
    prefill: Literal["continue", "unsupported"] = "continue"
    system: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage, compare=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            plain = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
        except ValueError:
            plain = False
        if not plain or set(self.url) & set(" ?#") or not (self.url.isascii() and self.url.isprintable()):
            # It is not repeated: it may hold a secret.
            raise SafetyNeuronsError(
                "The server's url has to be one such as http://127.0.0.1:8000/v1, without user, password and query. "
                f"A key belongs into the environment variable {KEY_VARIABLES[0]}."
            )
        if self.concurrency < 1:
            raise SafetyNeuronsError(f"concurrency is {self.concurrency}: ask at least 1 request at a time.")

    @property
    def name(self) -> str:
        return self.served

    @property
    def identity(self) -> str:
        # The url too: servers with other weights, precisions or templates call them by the same name.
        url = self.url.rstrip("/")
        return fingerprint("endpoint", url, self.served, self.system, dict(self.template_options))

    @property
    def change(self) -> str:
        """Nothing is changed in a model behind a server."""
        return ""

    @property
    def model(self) -> None:
        """There are no weights here."""

    def under(self, change: str) -> NoReturn:
        raise CannotRunError(f"{change} changes the model, and {self.name} is behind a server that gives text only.")

    @functools.cached_property
    def served(self) -> str:
        """What the server calls the model.

        Raises:
            SafetyNeuronsError: no name was given, and the server has no model, several, or no list of them.
        """
        if self.model_name is not None:
            return self.model_name
        names = self._wait_for(self._names)
        if len(names) != 1:
            known = shown(", ".join(names), self._key)
            listed = f"has {len(names)} models ({known})" if names else "lists no models"
            raise SafetyNeuronsError(f"The server at {self.url} {listed}: say which model you mean.")
        return names[0]

    @functools.cached_property
    def repeats_prefill(self) -> bool:
        """Whether answers that were begun come back with their beginning.

        Raises:
            CannotRun: the server does not go on with what was begun, or this cannot be told.
        """
        if self.prefill == "unsupported":
            raise CannotRunError(f"The server at {self.url} is said not to continue an answer that is begun (prefill).")

        async def work(client: "AsyncOpenAI") -> bool:
            with explained(self.url, self.served, self._key):
                return await repeats_prefill(functools.partial(self._ask, client), self.url, self._key)

        return self._wait_for(work)

    @functools.cached_property
    def draws(self) -> Literal[True]:
        """True.

        Raises:
            CannotRun: the server gives the same answer whatever the seed is.
        """

        async def work(client: "AsyncOpenAI") -> None:
            with explained(self.url, self.served, self._key):
                await must_draw(functools.partial(self._ask, client), self.url)

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
        """Yield (index, what is written after the prefill) as the answers come; closing it cancels what is asked.

        Raises:
            SafetyNeuronsError: a request was not answered; the answers that came before were yielded.
            CannotRun: an answer is begun, and the server does not go on with it; or it is to be drawn, and is not.
        """
        asked = [index for index in range(len(conversations)) if index not in done]
        if not asked:
            return
        repeats = any(conversations[index].prefill for index in asked) and self.repeats_prefill
        finished: queue.SimpleQueue[tuple[int, Completion] | None] = queue.SimpleQueue()
        settings: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": 0.0}
        if sampling is not None and self.draws:
            # The whole distribution: the server's own settings might cut it off.
            settings |= {"temperature": sampling.temperature, "seed": sampling.seed, "top_p": 1.0}

        async def work(client: "AsyncOpenAI") -> None:
            waiting = iter(asked)

            async def take() -> None:
                for index in waiting:
                    conversation = conversations[index]
                    extra = CONTINUED if conversation.prefill else {}
                    with explained(self.url, self.served, self._key):
                        reply = await self._ask(client, conversation, extra, **settings)
                    text = reply.text.removeprefix(conversation.prefill) if repeats else reply.text
                    finished.put((index, Completion(text, reply.cut_off)))

            async with anyio.create_task_group() as group:
                for _ in range(min(self.concurrency, len(asked))):
                    group.start_soon(take)

        # A thread of its own: the caller may be in an event loop already, as in a notebook. What leaves this block by
        # an error, Ctrl-C or the closing of this generator cancels the requests.
        with start_blocking_portal() as portal:
            future = portal.start_task_soon(self._with_client, work)
            future.add_done_callback(lambda _future: finished.put(None))
            while (item := finished.get()) is not None:
                yield item
            future.result()

    @property
    def _key(self) -> str | None:
        for name in KEY_VARIABLES:
            key = os.environ.get(name, "").strip()
            if key:
                if not (key.isascii() and key.isprintable()):
                    raise SafetyNeuronsError(f"{name} holds no key: it has characters that cannot be sent.")
                return key
        return None

    def _wait_for(self, work: Callable[["AsyncOpenAI"], Awaitable[T]]) -> T:
        with start_blocking_portal() as portal:
            return portal.call(self._with_client, work)

    async def _with_client(self, work: Callable[["AsyncOpenAI"], Awaitable[T]]) -> T:
        from openai import AsyncOpenAI, Timeout

        timeout = Timeout(self.timeout, connect=min(CONNECT_SECONDS, self.timeout))
        # Servers on one's own machine ask for no key, but the client does.
        key = self._key or "none"
        async with AsyncOpenAI(base_url=self.url, api_key=key, timeout=timeout, max_retries=self.retries) as client:
            try:
                return await work(client)
            except ExceptionGroup as group:
                # One failure is enough to know, and to end the others.
                raise group.exceptions[0] from None

    async def _names(self, client: "AsyncOpenAI") -> list[str]:
        with explained(self.url, "", self._key):
            raw = await client.models.with_raw_response.list()
        try:
            return [model.id for model in ServedModels.model_validate_json(raw.text).data]
        except ValidationError:
            raise not_understood(self.url, raw.text, self._key) from None

    async def _ask(
        self, client: "AsyncOpenAI", conversation: Conversation, extra: Mapping[str, Any], **settings: Any
    ) -> Reply:
        messages = [turn._asdict() for turn in conversation.turns]
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if conversation.prefill:
            messages.append({"role": "assistant", "content": conversation.prefill})
        if self.template_options:
            extra = {**extra, "chat_template_kwargs": dict(self.template_options)}
        create: Any = client.chat.completions.with_raw_response.create
        raw = await create(model=self.served, messages=messages, extra_body=extra, **settings)
        self.usage.requests += 1
        self.usage.retries += raw.retries_taken
        try:
            reply = Reply.model_validate_json(raw.text)
        except ValidationError:
            raise not_understood(self.url, raw.text, self._key) from None
        if reply.usage is not None:
            self.usage.prompt_tokens += reply.usage.prompt_tokens
            self.usage.completion_tokens += reply.usage.completion_tokens
        return reply
