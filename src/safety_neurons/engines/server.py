"""The protocol of OpenAI-compatible servers: their replies, their errors, and tests of what they support.

Servers silently ignore unknown fields, so a few short requests test prefill and sampling before these are used. No
message contains the API key.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from pydantic import BaseModel, Field

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.models.chat import Conversation


class Message(BaseModel):
    """What the model wrote; None if it did not finish its reasoning."""

    content: str | None = None
    # Servers use either name for the reasoning.
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(BaseModel):
    """One answer."""

    message: Message
    finish_reason: str | None = None


class TokenCounts(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reply(BaseModel):
    """A chat completion."""

    choices: list[Choice] = Field(min_length=1)
    usage: TokenCounts | None = None

    @property
    def text(self) -> str:
        return self.choices[0].message.content or ""

    @property
    def written(self) -> str:
        """The reasoning and the text."""
        message = self.choices[0].message
        return (message.reasoning_content or message.reasoning or "") + self.text

    @property
    def cut_off(self) -> bool:
        return self.choices[0].finish_reason == "length"


class ServedModel(BaseModel):
    """A model of the server."""

    id: str


class ServedModels(BaseModel):
    """The models of the server."""

    data: list[ServedModel]


# Number of characters of a server's message to quote.
SHOWN = 300


@contextlib.contextmanager
def explained(url: str, model_name: str, key: str | None) -> Iterator[None]:
    """Turn errors of the client, which retries by itself, into ours."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    try:
        yield
    except APITimeoutError:
        raise SafetyNeuronsError(
            f"The server at {url} timed out. Request shorter answers, lower concurrency, or raise timeout."
        ) from None
    except APIConnectionError as error:
        cause = shown(str(error.__cause__ or error), key)
        raise SafetyNeuronsError(
            f"The server at {url} is unreachable or drops the connection ({cause}). Check that it runs and that the "
            "URL is right."
        ) from None
    except APIStatusError as error:
        message = shown(error.response.text, key)
        # The client's error holds the request, and with it the key.
        raise SafetyNeuronsError(
            f"The server at {url} {_why(error.status_code, model_name, key)} Its message: {message}"
        ) from None


def not_understood(url: str, text: str, key: str | None) -> SafetyNeuronsError:
    """The error for an unexpected response body."""
    message = f"Its message: {shown(text, key)}" if text.strip() else "Its response was empty."
    return SafetyNeuronsError(
        f"The server at {url} did not respond like an OpenAI-compatible server. Check that the URL is that of its API "
        f"(usually ending in /v1). {message}"
    )


def shown(text: str, key: str | None) -> str:
    """The beginning of a text in one line, without the key and without control characters."""
    hidden = text.replace(key, "[key]") if key else text
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(hidden.split()))
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} ..."


def _why(status: int, model_name: str, key: str | None) -> str:
    if status in (401, 403):
        advice = "check it" if key else "set SAFETY_NEURONS_API_KEY"
        return f"does not accept {'the API key' if key else 'requests without an API key'}: {advice}."
    if status == 404:
        return f"has no model called {model_name!r}, or its API has another URL (usually ending in /v1)."
    if status == 429:
        return "accepts no more requests for now: lower concurrency, or continue later."
    if status >= 500:
        return f"failed repeatedly (status {status}): check its log."
    return f"rejected a request (status {status})."


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


async def repeats_prefill(ask: Ask, url: str, key: str | None) -> bool:
    """Whether the server repeats the prefill in its answer.

    The server supports prefill if the prefill adds only its own tokens to the prompt, or if leaving the message open
    adds fewer tokens than closing it. (Templates that put empty reasoning before the answer pass only the second test,
    and servers that always leave the last message open only the first.)

    Raises:
        CannotRunError: the server does not support prefill, or it cannot be tested.
    """
    from openai import APIStatusError

    async def asked(prefill: str, extra: Mapping[str, Any]) -> tuple[int, str]:
        reply = await ask(Conversation.of("Hello", prefill), extra, max_tokens=1, temperature=0.0)
        if reply.usage is None:
            raise CannotRunError(
                f"The server at {url} reports no token counts, so support for prefill cannot be tested."
            )
        return reply.usage.prompt_tokens, reply.text

    base, _ = await asked("", {})
    try:
        once, text = await asked(PREFILL_TEST, CONTINUED)
        twice, _ = await asked(PREFILL_TEST * 2, CONTINUED)
        own = twice - once
        continues = own > 0 and (once - base == own or once < (await asked(PREFILL_TEST, CLOSED))[0])
    except APIStatusError as error:
        if error.status_code not in REFUSALS:
            raise
        raise CannotRunError(
            f"The server at {url} does not support prefill. Its message: {shown(error.response.text, key)}"
        ) from None
    if not continues:
        raise CannotRunError(
            f"The server at {url} does not support prefill: according to its token counts it treats it as a complete "
            "answer. vLLM, SGLang, TGI and newer llama.cpp support it."
        )
    # One new token cannot be this long.
    return text.startswith(PREFILL_TEST)


async def check_sampling(ask: Ask, url: str) -> None:
    """Check that the server samples.

    Raises:
        CannotRunError: it gives the same answer for all seeds.
    """
    sampled = {(await ask(Conversation.of("Tell me a story."), {}, seed=seed, **HOT)).written for seed in SEEDS}
    if len(sampled) == 1:
        raise CannotRunError(
            f"The server at {url} does not sample: temperature and seed have no effect. (`transformers serve` samples "
            "only if the model's generation_config.json sets do_sample.)"
        )
