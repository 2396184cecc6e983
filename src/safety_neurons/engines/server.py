"""Errors of OpenAI-compatible servers, and tests of what these support.

Servers silently ignore unknown fields, so a few short requests test prefill and sampling before these are used. No
message contains the API key.
"""

import email.utils
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.engines.connection import Proxy, proxy_status, shown
from safety_neurons.engines.problems import Problem
from safety_neurons.engines.replies import Reply, UnreadableError, plain_text
from safety_neurons.engines.transfer import Limits
from safety_neurons.models.chat import Conversation

TIMEOUT_VARIABLE = "SAFETY_NEURONS_TIMEOUT"
SIZE_VARIABLE = "SAFETY_NEURONS_MAX_REPLY_BYTES"


class RejectedError(SafetyNeuronsError):
    """The server reports a problem; `said` is its message, safe to show."""

    def __init__(self, message: str, problem: Problem, said: str) -> None:
        super().__init__(message)
        self.problem, self.said = problem, said


@dataclass(frozen=True)
class Server:
    """Whom messages name: the URL, the model's name there, the proxy on the way, and the API key, which they hide."""

    url: str
    model_name: str = ""
    proxy: Proxy | None = None
    key: str | None = None

    def _about(self, said: Collection[str]) -> str:
        """Which request, for messages; `said`: its texts, of which the last is the prompt."""
        return f"the request {shown(list(said)[-1], self.key, 60)!r}" if said else "the request for its models"

    def late(self, said: Collection[str], limits: Limits, tried: int) -> SafetyNeuronsError:
        """The error for a request that takes too long.

        Args:
            said: texts of the request.
            tried: number of tries before this one.
        """
        through = "" if self.proxy is None else f" (through the proxy {self.proxy.name})"
        tries = f", in each of {tried + 1} tries" if tried else ""
        return SafetyNeuronsError(
            f"The server at {self.url} timed out{through}: {self._about(said)} had no complete response within "
            f"{limits.seconds:g} seconds{tries}. Request shorter answers, lower concurrency, or raise timeout "
            f"({TIMEOUT_VARIABLE})."
        )

    def too_large(self, said: Collection[str], limits: Limits) -> SafetyNeuronsError:
        """The error for a response that is larger than allowed."""
        through = "" if self.proxy is None else f" It was asked through the proxy {self.proxy.name}."
        return SafetyNeuronsError(
            f"The server at {self.url} responds to {self._about(said)} with more than {limits.size:,} bytes, "
            "decompressed. Check that the URL is that of its API, request shorter answers, or raise max_reply_bytes "
            f"({SIZE_VARIABLE}).{through}"
        )

    def rejected(self, problem: Problem, wait: float | None = None) -> RejectedError:
        """The error for what the server reports; `wait`: seconds until it accepts requests again."""
        why = self._why(problem, wait)
        message = shown(problem.message, self.key)
        through = "" if self.proxy is None or self.proxy.name in why else f"It was asked through {self.proxy.name}. "
        return RejectedError(
            f"The server at {self.url} {why} {through}"
            + (f"Its message: {message}" if message else "It gives no reason."),
            problem,
            message,
        )

    def not_understood(
        self, error: UnreadableError, raw: bytes, address: str = "", encoding: str = ""
    ) -> SafetyNeuronsError:
        """The error for an unexpected response body; `address`: where it came from, `encoding`: its compression."""
        text = raw.decode(errors="replace").strip()
        message = f" Its message: {shown(plain_text(text), self.key)}" if text else ""
        moved = address and urlsplit(address).path.rstrip("/") not in _requested(self.url)
        led = f" (redirected to {shown(address.partition('?')[0], self.key)})" if moved else ""
        through = "" if self.proxy is None else f" It was asked through the proxy {self.proxy.name}."
        what = shown(str(error), self.key).rstrip(".") + (
            f" (compressed: {shown(encoding, None, 30)})" if encoding else ""
        )
        if error.broken:
            return SafetyNeuronsError(
                f"The server at {self.url} sends no complete reply, even when asked again{led}. {what}. Check its log, "
                f"and any proxy or gateway before it.{through}{message}"
            )
        return SafetyNeuronsError(
            f"The server at {self.url} did not respond like an OpenAI-compatible server{led}. {what}. Check that the "
            f"URL is that of its API{self._other_url()}.{through}{message}"
        )

    def _other_url(self) -> str:
        """What else the URL may be."""
        path = urlsplit(self.url).path.rstrip("/")
        return " (usually ending in /v1)" if path.endswith("/v1") else f": perhaps {self.url.rstrip('/')}/v1"

    def _why(self, problem: Problem, wait: float | None) -> str:
        status = problem.status
        if (about := proxy_status(self.url, status, self.proxy)) is not None:
            return about
        if status in (401, 403):
            advice = "check it" if self.key else "set SAFETY_NEURONS_API_KEY"
            what = "the API key" if self.key else "requests without an API key"
            return f"does not accept {what} ({problem.label}): {advice}."
        if status == 402:
            return "wants to be paid (status 402): check the account."
        if status in (404, 405):
            model = (
                f"has no model called {self.model_name!r}, or its" if self.model_name else "does not list models: set"
            )
            rest = " API has another URL" if self.model_name else " model_name, or check the URL of the API"
            return f"{model}{rest}{self._other_url()} ({problem.label})."
        if status == 429:
            return f"accepts no more requests for now: {_later(wait)}."
        if problem.temporary and wait is not None:
            return f"is not available ({problem.label}): {_later(wait)}."
        if problem.temporary:
            return f"failed repeatedly ({problem.label}): check its log."
        if problem.too_long:
            return f"rejected a request as too long ({problem.label})."
        if problem.filtered:
            return f"blocked a request ({problem.filtered.partition(':')[0]})."
        return f"rejected a request ({problem.label})."


def _requested(url: str) -> list[str]:
    path = urlsplit(url).path.rstrip("/")
    return [f"{path}/chat/completions", f"{path}/models"]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until the server accepts requests again, if it says so: as a number, or as a date."""
    said = headers.get("retry-after", "")
    try:
        seconds = float(headers.get("retry-after-ms", "")) / 1000 if "retry-after-ms" in headers else float(said)
    except ValueError:
        date = email.utils.parsedate_tz(said)
        try:
            seconds = math.nan if date is None else email.utils.mktime_tz(date) - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) else None


def _later(wait: float | None) -> str:
    if wait is None or not 0 < wait < 1e7:
        return "lower concurrency, or continue later"
    at = time.strftime("%Y-%m-%d %H:%M" if wait > 43200 else "%H:%M", time.localtime(time.time() + wait))
    span = f"{wait / 60:.0f} minutes" if wait >= 120 else f"{wait:.0f} seconds"
    return f"it asks to wait {span}, until {at}. Continue then; the answers so far are kept"


# Alternating digits and letters: no tokenizer merges the end of one copy with the start of the next, so twice the text
# is twice the tokens.
PREFILL_TEST = "7q7q7q7q"
CONTINUED = {"add_generation_prompt": False, "continue_final_message": True}
CLOSED = {"add_generation_prompt": False}
# Statuses for an unknown field or messages that cannot be rendered.
REFUSALS = (400, 422, 500, 501)
# The highest temperature that servers allow, so that equal answers to all seeds are not chance.
HOT = {"temperature": 2.0, "top_p": 1.0, "max_tokens": 16}
SEEDS = (1, 2, 3)


class Ask(Protocol):
    """Sends one request: a conversation, extra fields of the body, and standard parameters."""

    async def __call__(self, conversation: Conversation, extra: Mapping[str, Any], **settings: Any) -> Reply: ...


async def repeats_prefill(ask: Ask, url: str) -> bool:
    """Whether the server repeats the prefill in its answer.

    The server supports prefill if the prefill adds only its own tokens to the prompt, or if leaving the message open
    adds fewer tokens than closing it. (Templates that put empty reasoning before the answer pass only the second test,
    and servers that always leave the last message open only the first.)

    Raises:
        CannotRunError: the server does not support prefill, or it cannot be tested.
    """

    async def asked(prefill: str, extra: Mapping[str, Any]) -> tuple[int, str]:
        reply = await ask(Conversation.of("Hello", prefill), extra, max_tokens=1, temperature=0.0)
        if reply.prompt_tokens is None:
            raise CannotRunError(
                f"The server at {url} reports no token counts, so support for prefill cannot be tested."
            )
        return reply.prompt_tokens, reply.text

    base, _ = await asked("", {})
    try:
        once, text = await asked(PREFILL_TEST, CONTINUED)
        twice, _ = await asked(PREFILL_TEST * 2, CONTINUED)
        own = twice - once
        continues = own > 0 and (once - base == own or once < (await asked(PREFILL_TEST, CLOSED))[0])
    except RejectedError as error:
        if error.problem.status not in REFUSALS:
            raise
        raise CannotRunError(f"The server at {url} does not support prefill. Its message: {error.said}") from None
    if not continues:
        raise CannotRunError(
            f"The server at {url} does not support prefill: according to its token counts it treats it as a complete "
            "answer. vLLM, SGLang, TGI and newer llama.cpp support it."
        )
    # One new token cannot be this long.
    return text.startswith(PREFILL_TEST)


async def check_sampling(ask: Ask, url: str, reasoning_tokens: int) -> None:
    """Check that the server samples.

    Args:
        reasoning_tokens: number of tokens that a server gets on top if its answers hide its reasoning.

    Raises:
        CannotRunError: it gives the same answer for all seeds.
    """

    async def asked(seed: int) -> str:
        reply = await ask(Conversation.of("Tell me a story."), {}, seed=seed, **HOT)
        if not reply.written and reply.cut_off:
            longer = {**HOT, "max_tokens": HOT["max_tokens"] + reasoning_tokens}
            reply = await ask(Conversation.of("Tell me a story."), {}, seed=seed, **longer)
        return reply.written

    if len({await asked(seed) for seed in SEEDS}) == 1:
        raise CannotRunError(
            f"The server at {url} does not sample: temperature and seed have no effect. (`transformers serve` samples "
            "only if the model's generation_config.json sets do_sample.)"
        )
