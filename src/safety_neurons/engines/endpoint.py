"""The engine of a model behind an OpenAI-compatible server: vLLM, SGLang, TGI, llama.cpp, `transformers serve`.

A server returns text only. What it adds by itself (a system prompt of the chat template, penalties of the generation
config) is invisible here, and its answers may vary slightly with its load.
"""

import functools
import math
import os
import queue
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal

from safety_neurons.core.addresses import credentials_of, secrets
from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.core.files import fingerprint
from safety_neurons.engines.client import Client, Usage
from safety_neurons.engines.connection import api_key, checked_url, key_for, proxy_for, shown
from safety_neurons.engines.exchange import Exchange
from safety_neurons.engines.parameters import Parameters
from safety_neurons.engines.server import (
    SIZE_VARIABLE,
    TIMEOUT_VARIABLE,
    Server,
    check_sampling,
    repeats_prefill,
)
from safety_neurons.engines.transfer import Limits, Transfer
from safety_neurons.models.chat import Conversation
from safety_neurons.models.generate import Completion, Sampling

T = TypeVar("T")

TIMEOUT_SECONDS = 600.0
MAX_REPLY_BYTES = 32 * 1024 * 1024


def _from_environment(variable: str, default: float) -> Callable[[], float]:
    """A positive number from the environment: for servers that no option is passed to, such as those of judges."""

    def read() -> float:
        text = os.environ.get(variable, "").strip()
        try:
            value = float(text or default)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise SafetyNeuronsError(f"{variable} must be a positive number, not {text!r}.")
        return value

    return read


@dataclass(frozen=True)
class Endpoint:
    """A model behind the server at `url` (usually ending in /v1).

    The API key comes from the environment: SAFETY_NEURONS_API_KEY, or else OPENAI_API_KEY. A user, a password and a
    query in the URL are sent with each request, the user and the password instead of the API key; `url` and all that is
    kept or shown is without them. A request that a content
    filter stops is "blocked", and one that the server rejects while it accepts others is "not run": too long, mostly.

    Args:
        model_name: Default: the server's only model.
        concurrency: maximum number of simultaneous requests.
        timeout: in seconds, for one try of a request with its whole response; all its tries together may take
            `retries + 1` times as long. Default: $SAFETY_NEURONS_TIMEOUT, or 600.
        max_reply_bytes: maximum size of a response, decompressed. Default: $SAFETY_NEURONS_MAX_REPLY_BYTES, or 32 MiB.
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
    timeout: float = field(default_factory=_from_environment(TIMEOUT_VARIABLE, TIMEOUT_SECONDS))
    retries: int = 5
    prefill: Literal["continue", "unsupported"] = "continue"
    system: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    reasoning_tokens: int = 1024
    max_reply_bytes: float = field(default_factory=_from_environment(SIZE_VARIABLE, MAX_REPLY_BYTES))
    usage: Usage = field(default_factory=Usage, compare=False)
    parameters: Parameters = field(default_factory=Parameters, compare=False, repr=False)

    def __post_init__(self) -> None:
        # The class is frozen, but no field may hold a secret.
        object.__setattr__(self, "url", checked_url(self.url))
        for name in ("timeout", "max_reply_bytes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise SafetyNeuronsError(f"{name} must be a positive number, not {value:g}.")
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
        names = self._wait_for(Client.model_names, "")
        if len(names) != 1:
            several = shown(", ".join(names), api_key())
            listed = f"has {len(names)} models ({several})" if names else "lists no models"
            raise SafetyNeuronsError(f"The server at {self.url} {listed}: set model_name (--served-model).")
        return names[0]

    @functools.cached_property
    def repeats_prefill(self) -> bool:
        """Whether the server repeats the prefill in its answer.

        Raises:
            CannotRunError: the server does not support prefill, or it cannot be tested.
        """
        if self.prefill == "unsupported":
            raise CannotRunError(f"Prefill is disabled for the server at {self.url}.")

        async def work(client: Client) -> bool:
            return await repeats_prefill(client.ask, self.url)

        return self._wait_for(work, self.served)

    @functools.cached_property
    def samples(self) -> Literal[True]:
        """Always True.

        Raises:
            CannotRunError: the server does not sample.
        """

        async def work(client: Client) -> None:
            await check_sampling(client.ask, self.url, self.reasoning_tokens)

        self._wait_for(work, self.served)
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

        model_name = self.served

        async def work(client: Client) -> None:
            waiting = iter(asked)
            exchange = Exchange(client, settings, repeats=repeats, reasoning_tokens=self.reasoning_tokens)

            async def take() -> None:
                for index in waiting:
                    finished.put((index, await exchange.completion(conversations[index])))

            async with anyio.create_task_group() as group:
                for _ in range(min(self.concurrency, len(asked))):
                    group.start_soon(take)

        # A separate thread, as the caller may be in an event loop (a notebook). Leaving this block (an error, Ctrl-C,
        # closing the generator) cancels the requests.
        with start_blocking_portal() as portal:
            future = portal.start_task_soon(self._with_client, work, model_name)
            future.add_done_callback(lambda _future: finished.put(None))
            while (item := finished.get()) is not None:
                yield item
            future.result()

    def _wait_for(self, work: Callable[[Client], Awaitable[T]], model_name: str) -> T:
        with start_blocking_portal() as portal:
            return portal.call(self._with_client, work, model_name)

    async def _with_client(self, work: Callable[[Client], Awaitable[T]], model_name: str) -> T:
        server = Server(self.url, model_name, proxy_for(self.url), key_for(self.url))
        transfer = Transfer(self.url, server.proxy, credentials_of(self.url), server.key)
        limits = Limits(self.timeout, int(self.max_reply_bytes))
        try:
            return await work(
                Client(
                    transfer,
                    server,
                    self.retries,
                    limits,
                    secrets(),
                    self.parameters,
                    self.usage,
                    self.system,
                    self.template_options,
                )
            )
        except ExceptionGroup as group:
            # The first failure ends the others.
            raise group.exceptions[0] from None
        finally:
            with anyio.CancelScope(shield=True):
                await transfer.close()
