"""What an attack is: it turns requests into the prompts that are sent in their place."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safety_neurons.models.conversation import Turn

if TYPE_CHECKING:
    from safety_neurons.defenses.defense import Defended, Response
    from safety_neurons.engines.bench import Bench


@dataclass(frozen=True)
class AttackedPrompt:
    """What the model is given: the user's turn, and a text that the assistant's turn starts with (may be empty).

    The answer to judge is `prefill` followed by what the model writes after it. `before` are the earlier turns of the
    same conversation: a defence keeps them.
    """

    user: str
    prefill: str = ""
    before: tuple[Turn, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A named attack. What a subclass adds as fields are its options: `name:option=value` sets them.

    `source` says where the method was published, `budget` what it costs a request. `sees_defended_model` tells whether
    it is made with access to the model under test, which makes its success rate a stronger claim.
    """

    name: str
    source: str
    description: str
    budget: str = "one fixed prompt a request"
    sees_defended_model: bool = False

    def reads(self, bench: "Bench") -> Sequence[Path]:
        """The files whose content the attack depends on."""
        return ()

    def surrounding(self, bench: "Bench") -> AbstractContextManager["Bench"]:
        """The bench on which the defended model is asked, for attacks that change the model itself.

        Raises:
            CannotRun: the bench lacks what the attack needs.
        """
        return contextlib.nullcontext(bench)

    def prompts(self, requests: Sequence[str], defended: "Defended", bench: "Bench") -> Sequence[AttackedPrompt | None]:
        """What is sent for each request; None where the attack has nothing for it.

        Raises:
            CannotRun: the bench lacks what the attack needs.
        """
        raise NotImplementedError

    def returned(self, responses: "Sequence[Response]", defended: "Defended", bench: "Bench") -> "Sequence[Response]":
        """What is judged of the answers to what was sent, for attacks that have to undo what they did to a request."""
        return responses


@dataclass(frozen=True, kw_only=True)
class Template(Attack):
    """An attack that is the same for every model; `apply(request)` keeps the request's meaning."""

    apply: Callable[[str], AttackedPrompt]

    def prompts(self, requests: Sequence[str], defended: "Defended", bench: "Bench") -> Sequence[AttackedPrompt]:
        return [self.apply(request) for request in requests]
