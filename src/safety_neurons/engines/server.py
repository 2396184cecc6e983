"""Whether a server does what is asked of it, found out with a few short requests.

Servers leave out what they do not know without a word: the answers would belong to another experiment.


What we read of the bodies that an OpenAI-compatible server answers with.

Why a server did not answer, in words that say what to do. No text holds the key."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from pydantic import BaseModel, Field

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.models.chat import Conversation


class Message(BaseModel):
    """What the model wrote; None where it did not get beyond its reasoning."""

    content: str | None = None
    # Two names for what a model thought before.
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(BaseModel):
    """One answer."""

    message: Message
    finish_reason: str | None = None


class Tokens(BaseModel):
    """How many there were."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reply(BaseModel):
    """A chat completion."""

    choices: list[Choice] = Field(min_length=1)
    usage: Tokens | None = None

    @property
    def text(self) -> str:
        return self.choices[0].message.content or ""

    @property
    def written(self) -> str:
        """The text and what the model thought before."""
        message = self.choices[0].message
        return (message.reasoning_content or message.reasoning or "") + self.text

    @property
    def cut_off(self) -> bool:
        return self.choices[0].finish_reason == "length"


class ServedModel(BaseModel):
    """A model that can be asked."""

    id: str


class ServedModels(BaseModel):
    """The list of them."""

    data: list[ServedModel]


# Of what a server says: enough to recognize it.
SHOWN = 300


@contextlib.contextmanager
def explained(url: str, model_name: str, key: str | None) -> Iterator[None]:
    """Turn the client's errors into ours; the client has tried again by itself where that could help."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    try:
        yield
    except APITimeoutError:
        raise SafetyNeuronsError(
            f"The server at {url} did not answer in time. Ask for shorter answers or fewer at a time, or wait longer "
            "(timeout)."
        ) from None
    except APIConnectionError as error:
        cause = shown(str(error.__cause__ or error), key)
        raise SafetyNeuronsError(
            f"The server at {url} cannot be reached, or drops the connection ({cause}). See that it runs, and that "
            "the url is right."
        ) from None
    except APIStatusError as error:
        status, said = error.status_code, shown(error.response.text, key)
        # The client's own error holds the request, and with it the key.
        raise SafetyNeuronsError(f"The server at {url} {_why(status, model_name, key)} It says: {said}") from None


def not_understood(url: str, text: str, key: str | None) -> SafetyNeuronsError:
    """The error for a body that is not what was asked for."""
    said = f"It says: {shown(text, key)}" if text.strip() else "It says nothing."
    return SafetyNeuronsError(
        f"The server at {url} does not answer as an OpenAI-compatible server does. See that the url is that of its "
        f"API (it ends in /v1, mostly). {said}"
    )


def shown(text: str, key: str | None) -> str:
    """The beginning of a text in one line, without the key and without what a terminal would obey."""
    hidden = text.replace(key, "[key]") if key else text
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(hidden.split()))
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} ..."


def _why(status: int, model_name: str, key: str | None) -> str:
    if status in (401, 403):
        advice = "see that it is the right one" if key else "put one into SAFETY_NEURONS_API_KEY"
        return f"does not accept {'the key' if key else 'requests without a key'}: {advice}."
    if status == 404:
        return f"has no model called {model_name!r}, or its API is elsewhere (urls end in /v1, mostly)."
    if status == 429:
        return "takes no more requests for now: ask for fewer at a time (concurrency), or go on later."
    if status >= 500:
        return f"failed again and again (status {status}): look into its log."
    return f"refused a request (status {status})."


# Digits and letters in turns: no tokenizer puts the end of one and the beginning of the next into one token, so that
# twice the text is twice the tokens.
BEGUN = "7q7q7q7q"
CONTINUED = {"add_generation_prompt": False, "continue_final_message": True}
CLOSED = {"add_generation_prompt": False}
# How servers say that they do not know a field or cannot render these messages.
REFUSALS = (400, 422, 500, 501)
# As hot as servers allow: the same answer to all seeds is no chance.
HOT = {"temperature": 2.0, "top_p": 1.0, "max_tokens": 16}
SEEDS = (1, 2, 3)


class Ask(Protocol):
    """One request: what is asked, further fields of the body, and settings that every server knows."""

    async def __call__(self, conversation: Conversation, extra: Mapping[str, Any], **settings: Any) -> Reply: ...


async def repeats_prefill(ask: Ask, url: str, key: str | None) -> bool:
    """Whether an answer that was begun comes back with its beginning.

    The server goes on with it if it adds no more to the prompt than its own tokens, or if leaving the message open adds
    fewer than closing it does. (Templates that put an empty thought before the answer pass only the second test, and
    servers that leave the last message open by themselves only the first.)

    Raises:
        CannotRun: the server does not go on with what was begun, or this cannot be told.
    """
    from openai import APIStatusError

    async def asked(prefill: str, extra: Mapping[str, Any]) -> tuple[int, str]:
        reply = await ask(Conversation.of("Hello", prefill), extra, max_tokens=1, temperature=0.0)
        if reply.usage is None:
            raise CannotRunError(
                f"The server at {url} does not count its tokens, so that it cannot be told whether it continues an "
                "answer that is begun (prefill)."
            )
        return reply.usage.prompt_tokens, reply.text

    base, _ = await asked("", {})
    try:
        once, text = await asked(BEGUN, CONTINUED)
        twice, _ = await asked(BEGUN * 2, CONTINUED)
        own = twice - once
        continues = own > 0 and (once - base == own or once < (await asked(BEGUN, CLOSED))[0])
    except APIStatusError as error:
        if error.status_code not in REFUSALS:
            raise
        raise CannotRunError(
            f"The server at {url} does not continue an answer that is begun (prefill). It says: "
            f"{shown(error.response.text, key)}"
        ) from None
    if not continues:
        raise CannotRunError(
            f"The server at {url} does not continue an answer that is begun (prefill): its counts of tokens say that "
            "it takes it for a whole answer. vLLM, SGLang, TGI and newer llama.cpp continue it."
        )
    # More than one token can write.
    return text.startswith(BEGUN)


async def must_draw(ask: Ask, url: str) -> None:
    """Nothing where the server draws its answers.

    Raises:
        CannotRun: it gives the same answer to all seeds.
    """
    drawn = {(await ask(Conversation.of("Tell me a story."), {}, seed=seed, **HOT)).written for seed in SEEDS}
    if len(drawn) == 1:
        raise CannotRunError(
            f"The server at {url} draws no answers: temperature and seed change nothing. (`transformers serve` draws "
            "only where the model's generation_config.json has do_sample.)"
        )
