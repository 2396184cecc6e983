"""Whether a server does what is asked of it, found out with a few short requests.

Servers leave out what they do not know without a word: the answers would belong to another experiment.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from safety_neurons.engines.replies import Reply
from safety_neurons.engines.unanswered import shown
from safety_neurons.errors import CannotRun
from safety_neurons.models.conversation import Conversation

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
            raise CannotRun(
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
        raise CannotRun(
            f"The server at {url} does not continue an answer that is begun (prefill). It says: "
            f"{shown(error.response.text, key)}"
        ) from None
    if not continues:
        raise CannotRun(
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
        raise CannotRun(
            f"The server at {url} draws no answers: temperature and seed change nothing. (`transformers serve` draws "
            "only where the model's generation_config.json has do_sample.)"
        )
