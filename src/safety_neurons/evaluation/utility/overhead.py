"""What a defense costs in time: the average token generation time ratio of SafeDecoding (Xu et al. 2024), ATGR.

It is the time for each token that the user reads with the defense, over that without one. A defense that answers in few
words has few tokens to share its time out to, so that the ratio of whole times is given beside it.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.engines.engine import uncached, weights_of
from safety_neurons.evaluation import defenses
from safety_neurons.evaluation.contracts import Defense, EvaluationContext
from safety_neurons.models.chat import AttackedPrompt, ChatModel


@dataclass(frozen=True)
class Overhead:
    """Times of a defense over those without one: medians over rounds, each with the least and the largest of a round.

    `ratio` is of the time for each token, `total` of the time for all answers.
    """

    defense: str
    ratio: float
    low: float
    high: float
    total: float
    total_low: float
    total_high: float


class Spent(NamedTuple):
    """Seconds that the answers took, and how many tokens the user read."""

    seconds: float
    tokens: int

    @property
    def per_token(self) -> float:
        # An empty answer took its time, too.
        return self.seconds / max(1, self.tokens)


def overhead(
    context: EvaluationContext,
    given: Sequence[Defense],
    prompts: Sequence[AttackedPrompt],
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Overhead]:
    """Measure defenses beside none, with answers of up to `bench.answer_tokens` tokens, all of them computed anew.

    The prompts are sent one by one, as a user would. All take turns in every round, each round beginning with the next
    one, so that a machine whose speed drifts treats them alike. What happens once is not counted: opening a defense,
    with all it trains, and the first answer after that.

    Raises:
        CannotRun: the model is behind a server, or the bench lacks what a defense needs.
        SafetyNeuronsError: there is no prompt or no round.
    """
    if not prompts or rounds < 1:
        raise SafetyNeuronsError("The overhead of a defense takes at least one prompt and one round to measure.")
    model = weights_of(context.engine, "The overhead of a defense")
    contenders = [defenses.get("none"), *given]
    spent: list[list[Spent]] = [[] for _ in contenders]
    with tempfile.TemporaryDirectory() as folder:
        # What was trained in the first round is found in the others.
        own = replace(context, engine=uncached(context.engine), folder=context.folder or Path(folder))
        with context.listener.task("overhead of the defenses", rounds * len(contenders)) as advance:
            for number in range(rounds):
                for turn in range(len(contenders)):
                    place = (number + turn) % len(contenders)
                    spent[place].append(_spent(contenders[place], own, model, prompts, clock))
                    advance(1)
    return [
        Overhead(
            defense.name,
            *_spread([one.per_token / other.per_token for one, other in zip(times, spent[0], strict=True)]),
            *_spread([one.seconds / other.seconds for one, other in zip(times, spent[0], strict=True)]),
        )
        for defense, times in zip(given, spent[1:], strict=True)
    ]


def _spent(
    defense: Defense,
    context: EvaluationContext,
    model: ChatModel,
    prompts: Sequence[AttackedPrompt],
    clock: Callable[[], float],
) -> Spent:
    with defense.opened(context) as defended:
        defended.respond(prompts[:1])
        before = clock()
        responses = [defended.respond([prompt])[0] for prompt in prompts]
        seconds = clock() - before
    written = [
        response.text if response.blocked else response.text.removeprefix(prompt.prefill)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    return Spent(seconds, sum(len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in written))


def _spread(ratios: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(ratios), min(ratios), max(ratios)
