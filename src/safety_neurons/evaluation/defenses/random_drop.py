"""Random dropping (RA-LLM): a prompt is answered only if the model would answer it with words missing, too.

A jailbreak depends on its words, and with some gone the model refuses again; so a prompt of which enough shortened
copies are refused is blocked. Only the beginnings of those answers are needed.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation.contracts import (
    Defended,
    Defense,
    EvaluationContext,
    Response,
    conversation_of,
    respond_unless,
)
from safety_neurons.evaluation.defenses.perturbation import drawing, dropped, words
from safety_neurons.evaluation.judges import rules
from safety_neurons.models.chat import AttackedPrompt


@dataclass(frozen=True, kw_only=True)
class RandomDrop(Defense):
    """Each of `copies` lacks `share` of the prompt's words; the prompt is blocked if the model refuses it as it is, or
    more than `threshold` of the copies, by the keyword judge on the first `tokens` of the answers.

    Published for tokens, here words and punctuation marks, so that a model behind a server can be defended, too.
    """

    copies: int = 20
    share: float = 0.3
    threshold: float = 0.2
    tokens: int = 10

    def __post_init__(self) -> None:
        if min(self.copies, self.tokens) < 1 or not 0 <= self.share < 1 or not 0 <= self.threshold <= 1:
            raise SafetyNeuronsError(
                f"{self.name}: copies and tokens are at least 1, share and threshold between 0 and 1."
            )

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        yield Defended(context.engine, functools.partial(self._respond, context))

    def _respond(self, context: EvaluationContext, prompts: Sequence[AttackedPrompt]) -> list[Response]:
        asked = [copy for prompt in prompts for copy in (prompt, *self._copies(prompt, context.seed))]
        answers = context.answers([conversation_of(copy) for copy in asked], self.tokens)
        judge = rules("keywords").judge
        refused = [
            judge(copy.user, f"{copy.prefill}{answer.text}").verdict == "refused"
            for copy, answer in zip(asked, answers, strict=True)
        ]
        each = self.copies + 1
        whole, shortened = refused[::each], [refused[at + 1 : at + each] for at in range(0, len(refused), each)]
        blocked = [
            one or sum(copies) > self.threshold * self.copies for one, copies in zip(whole, shortened, strict=True)
        ]
        return respond_unless(blocked, context, prompts)

    def _copies(self, prompt: AttackedPrompt, seed: int) -> list[AttackedPrompt]:
        numbers, pieces = drawing(seed, "random-drop", prompt.user), words(prompt.user)
        return [replace(prompt, user=dropped(pieces, self.share, numbers)) for _ in range(self.copies)]


DEFENSE = RandomDrop(
    name="random-drop",
    source="Cao et al. 2023, Defending Against Alignment-Breaking Attacks via Robustly Aligned LLM "
    "(arXiv:2309.14348); 20 copies without 30% of their tokens, threshold 0.2, 10 new tokens",
    description="Blocks a prompt that the model refuses once random words are missing.",
)
