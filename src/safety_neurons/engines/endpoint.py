"""The engine of a model behind an OpenAI-compatible server: vLLM, SGLang, TGI, llama.cpp, `transformers serve`.

A server returns text only. What it adds by itself (a system prompt of the chat template, penalties of the generation
config) is invisible here, and its answers may vary slightly with its load.
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
    check_sampling,
    explained,
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

    The API key comes from the environment: SAFETY_NEURONS_API_KEY, or else OPENAI_API_KEY. The output of a server's
    content filter counts as its answer.

    Args:
        model_name: Default: the server's only model.
        concurrency: maximum number of simultaneous requests.
        timeout: in seconds, per request.
        retries: maximum number of retries after dropped connections, timeouts, full queues (respecting Retry-After) and
            server errors.
        prefill: "continue" sends a prefill with `continue_final_message`, after a few one-token requests have shown
            that the server supports it; "unsupported" makes it an error.
        system: the system prompt of conversations that have none.
        template_options: passed to the chat template.
        usage: adds up the server's token counts.
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
            # The URL is not repeated, as it may hold a secret.
            raise SafetyNeuronsError(
                "The URL of the server must look like http://127.0.0.1:8000/v1, without user, password and query. "
                f"Put an API key into the environment variable {KEY_VARIABLES[0]}."
            )
        if self.concurrency < 1:
            raise SafetyNeuronsError(f"concurrency must be at least 1, not {self.concurrency}.")

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
            several = shown(", ".join(names), self._key)
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
            with explained(self.url, self.served, self._key):
                return await repeats_prefill(functools.partial(self._ask, client), self.url, self._key)

        return self._wait_for(work)

    @functools.cached_property
    def samples(self) -> Literal[True]:
        """Always True.

        Raises:
            CannotRunError: the server does not sample.
        """

        async def work(client: "AsyncOpenAI") -> None:
            with explained(self.url, self.served, self._key):
                await check_sampling(functools.partial(self._ask, client), self.url)

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

        # A separate thread, as the caller may be in an event loop (a notebook). Leaving this block (an error, Ctrl-C,
        # closing the generator) cancels the requests.
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
                    raise SafetyNeuronsError(f"{name} is not a valid API key: it has characters that cannot be sent.")
                return key
        return None

    def _wait_for(self, work: Callable[["AsyncOpenAI"], Awaitable[T]]) -> T:
        with start_blocking_portal() as portal:
            return portal.call(self._with_client, work)

    async def _with_client(self, work: Callable[["AsyncOpenAI"], Awaitable[T]]) -> T:
        from openai import AsyncOpenAI, Timeout

        timeout = Timeout(self.timeout, connect=min(CONNECT_SECONDS, self.timeout))
        # Local servers need no key, but the client requires one.
        key = self._key or "none"
        async with AsyncOpenAI(base_url=self.url, api_key=key, timeout=timeout, max_retries=self.retries) as client:
            try:
                return await work(client)
            except ExceptionGroup as group:
                # The first failure ends the others.
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
