"""What becomes of each request: an answer, a block by a content filter, or a prompt that is not run."""

from collections.abc import Mapping
from typing import Any

import anyio

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.engines.client import Client
from safety_neurons.engines.connection import shown
from safety_neurons.engines.replies import Reply
from safety_neurons.engines.server import CONTINUED, RejectedError
from safety_neurons.models.chat import Conversation
from safety_neurons.models.generate import Completion

# What shows whether a server accepts requests, when it rejects a prompt.
CONTROL = "Hello"


class Exchange:
    """Requests that have their settings in common.

    Args:
        settings: the parameters of each request, with `max_tokens`.
        repeats: whether the server repeats a prefill.
        reasoning_tokens: see `Endpoint`.
    """

    def __init__(self, client: Client, settings: Mapping[str, Any], *, repeats: bool, reasoning_tokens: int) -> None:
        self.client, self.settings, self.repeats, self.more = client, settings, repeats, reasoning_tokens
        self.limit: int = settings["max_tokens"]
        # Requests without and with a prefill that the server has accepted.
        self.accepted = [0, 0]
        self.lock = anyio.Lock()

    async def completion(self, conversation: Conversation) -> Completion:
        """What becomes of a request.

        Raises:
            SafetyNeuronsError: the server fails, or rejects every request.
        """
        prefill = bool(conversation.prefill)
        before = self.accepted[prefill]
        try:
            found = await self._answer(conversation)
        except RejectedError as error:
            problem, key = error.problem, self.client.server.key
            if problem.filtered:
                await self._check_filter(prefill)
                return Completion("", False, outcome="blocked", reason=shown(problem.filtered, key))
            if not problem.concerns_prompt:
                raise
            if not await self._accepts_others(prefill, before):
                if problem.too_long:
                    raise SafetyNeuronsError(
                        f"{error} The prompt {CONTROL!r} is too long, too: shorter answers (max_new_tokens) may fit."
                    ) from None
                raise
            return Completion("", False, outcome="not run", reason=shown(problem.summary, key))
        self.accepted[prefill] += 1
        return found

    async def _accepts_others(self, prefill: bool, before: int) -> bool:
        """Whether the server accepts other requests of this kind now; it has, if there are more than `before`."""
        async with self.lock:
            if self.accepted[prefill] == before:
                try:
                    await self._ask_control(prefill)
                except RejectedError:
                    return False
                self.accepted[prefill] += 1
            return True

    async def _check_filter(self, prefill: bool) -> None:
        """Warn of a filter that blocks everything: it says nothing about the prompts."""
        async with self.lock:
            if any(self.accepted) or self.client.parameters.filter_checked:
                return
            self.client.parameters.filter_checked = True
            try:
                blocked = (await self._ask_control(prefill)).filtered
            except RejectedError as error:
                blocked = error.problem.filtered
            if blocked:
                self.client.tell(
                    f"blocks even the prompt {CONTROL!r}: check its content filter, or its blocks say nothing about "
                    "the prompts."
                )

    async def _ask_control(self, prefill: bool) -> Reply:
        return await self._ask(Conversation.of(CONTROL, CONTROL if prefill else ""), self.limit)

    async def _ask(self, conversation: Conversation, tokens: int) -> Reply:
        extra = CONTINUED if conversation.prefill else {}
        return await self.client.ask(conversation, extra, **{**self.settings, "max_tokens": tokens})

    async def _answer(self, conversation: Conversation) -> Completion:
        """The answer, with room for reasoning if the server is known to reason."""
        tokens = self.limit + self.client.parameters.reasoning_tokens
        try:
            reply = await self._ask(conversation, tokens)
        except RejectedError as error:
            if tokens == self.limit or not error.problem.too_long:
                raise
            # The room for reasoning may be what does not fit.
            reply, tokens = await self._ask(conversation, self.limit), self.limit
        else:
            if tokens == self.limit and reply.unfinished and self.more:
                reply, tokens = await self._ask_for_more(conversation, reply)
        parted = reply.parted(conversation.prefill if self.repeats else "")
        # A server that does not say why it stopped has stopped at the limit if it wrote that many tokens.
        cut_off = reply.cut_off or parted.unfinished or (not reply.finish and reply.completion_tokens == tokens)
        if reply.filtered:
            reason = shown(reply.filtered, self.client.server.key)
            return Completion(parted.answer, cut_off, parted.reasoning, "blocked", reason)
        return Completion(parted.answer, cut_off, parted.reasoning)

    async def _ask_for_more(self, conversation: Conversation, unfinished: Reply) -> tuple[Reply, int]:
        """A reply with room for reasoning, and its limit of tokens; the unfinished one if that does not fit."""
        tokens = self.limit + self.more
        if not self.client.parameters.reasoning_tokens:
            self.client.parameters.reasoning_tokens = self.more
            self.client.tell(f"reasons before it answers: its answers get {self.more:,} tokens more for that.")
        try:
            return await self._ask(conversation, tokens), tokens
        except RejectedError as error:
            if not error.problem.too_long:
                raise
            return unfinished, self.limit
