"""What a defence is: a way to answer with a model so that attacks fail."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Self

from safety_neurons.attacks.attack import AttackedPrompt
from safety_neurons.engines.bench import Bench
from safety_neurons.engines.engine import Engine
from safety_neurons.models.conversation import Conversation

# What a user reads where a defence answers in the model's place.
REFUSAL = "I'm sorry, but I can't help with that."


class Response(NamedTuple):
    """The whole turn that the user reads, with what was prefilled, and whether it ran into the limit.

    `blocked`: the defence answered, not the model.
    """

    text: str
    cut_off: bool = False
    blocked: bool = False


BLOCKED = Response(REFUSAL, blocked=True)


@dataclass(frozen=True)
class Defended:
    """A model behind a defence: `respond` answers prompts; `engine` is the model as the defence has changed it.

    An attack that sees the model under test sees `engine.model`, without what the defence does to texts.
    """

    engine: Engine
    respond: Callable[[Sequence[AttackedPrompt]], list[Response]]


@dataclass(frozen=True, kw_only=True)
class Defense:
    """A named defence. What a subclass adds as fields are its options: `name:option=value` sets them.

    The defaults of the options are the published ones; `source` says where.
    """

    name: str
    source: str
    description: str

    def prepared(self, bench: Bench) -> Self:
        """The defence with what it learns of the bench's model learnt, for attacks that change the model afterwards.

        Raises:
            CannotRun: the bench lacks what the defence needs.
        """
        return self

    def opened(self, bench: Bench) -> AbstractContextManager[Defended]:
        """The defended model; what was changed in it is undone at the end.

        Raises:
            CannotRun: the bench lacks what the defence needs.
        """
        raise NotImplementedError


def conversation_of(prompt: AttackedPrompt) -> Conversation:
    """What is sent as it is."""
    return Conversation.of(prompt.user, prompt.prefill, before=prompt.before)


def respond_with(
    bench: Bench, prompts: Sequence[AttackedPrompt], conversations: Sequence[Conversation] | None = None
) -> list[Response]:
    """The model's answers to prompts, or to what a defence made of them; each keeps its prompt's prefill."""
    asked = conversations or [conversation_of(prompt) for prompt in prompts]
    return [
        Response(f"{prompt.prefill}{completion.text}", completion.cut_off)
        for prompt, completion in zip(prompts, bench.answers(asked), strict=True)
    ]


def respond_unless(blocked: Sequence[bool], bench: Bench, prompts: Sequence[AttackedPrompt]) -> list[Response]:
    """The plain answers to prompts, and a refusal in place of those that are blocked."""
    passing = [prompt for prompt, stopped in zip(prompts, blocked, strict=True) if not stopped]
    answered = iter(respond_with(bench, passing))
    return [BLOCKED if stopped else next(answered) for stopped in blocked]
