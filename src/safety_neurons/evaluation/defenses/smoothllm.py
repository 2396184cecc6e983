"""SmoothLLM: several copies of the prompt with random typing errors are answered, and the majority decides.

Suffixes that were searched for break when characters change, and the model refuses the request again; attacks in plain
words survive the errors. Answers to broken prompts are worse, and each prompt costs as many answers as there are
copies.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation.contracts import Defended, Defense, EvaluationContext, Response, respond_with
from safety_neurons.evaluation.defenses.perturbation import PERTURBATIONS, Kind, drawing
from safety_neurons.evaluation.judges import rules
from safety_neurons.models.chat import AttackedPrompt


@dataclass(frozen=True, kw_only=True)
class SmoothLLM(Defense):
    """`percent` of the characters of the user's turn are perturbed in each of `copies`.

    An answer counts as broken unless the keyword judge calls it a refusal. The majority is broken if more than half
    are, as published; the answer is the first copy's that agrees, which is as random a choice as the published one.
    """

    copies: int = 10
    percent: float = 10.0
    perturbation: Kind = "swap"

    def __post_init__(self) -> None:
        if self.copies < 1 or not 0 <= self.percent <= 100:
            raise SafetyNeuronsError(f"{self.name}: copies are at least 1, and percent is between 0 and 100.")

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        yield Defended(context.engine, functools.partial(self._respond, context))

    def _respond(self, context: EvaluationContext, prompts: Sequence[AttackedPrompt]) -> list[Response]:
        copied = [copy for prompt in prompts for copy in self._copies(prompt, context.seed)]
        answers = respond_with(context, copied)
        starts = range(0, len(answers), self.copies)
        return [_majority(prompt, answers[at : at + self.copies]) for prompt, at in zip(prompts, starts, strict=True)]

    def _copies(self, prompt: AttackedPrompt, seed: int) -> list[AttackedPrompt]:
        perturb = PERTURBATIONS[self.perturbation]
        numbers = drawing(seed, "smoothllm", prompt.user)
        return [replace(prompt, user=perturb(prompt.user, self.percent / 100, numbers)) for _ in range(self.copies)]


def _majority(prompt: AttackedPrompt, answers: Sequence[Response]) -> Response:
    """The first answer of the kind, refused or not, that most are; refused where both are as many."""
    judge = rules("keywords").judge
    refused = [judge(prompt.user, answer.text).verdict == "refused" for answer in answers]
    return answers[refused.index(2 * sum(refused) >= len(answers))]


DEFENSE = SmoothLLM(
    name="smoothllm",
    source="Robey et al. 2023, SmoothLLM (arXiv:2310.03684); 10 copies, 10 percent swapped",
    description="Answers several randomly misspelt copies of the prompt; the majority decides.",
)
