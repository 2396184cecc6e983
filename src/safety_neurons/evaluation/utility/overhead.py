"""The cost of a defense in time: the average token generation time ratio (ATGR) of SafeDecoding (Xu et al. 2024).

It is the time per token that the user reads, with the defense over without. A defense that answers in few words has few
tokens to divide its time by, so the ratio of total times is reported, too.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.folders import scratch_folder
from safety_neurons.engines.engine import uncached, weights_of
from safety_neurons.evaluation import defenses
from safety_neurons.evaluation.checked import opened
from safety_neurons.evaluation.contracts import Defense, EvaluationContext
from safety_neurons.models.chat import AttackedPrompt, ChatModel


@dataclass(frozen=True)
class Overhead:
    """Times with a defense over those without: medians over rounds, with the smallest and the largest of a round.

    `ratio` is that of the time per token, `total` that of the time for all answers.
    """

    defense: str
    ratio: float
    low: float
    high: float
    total: float
    total_low: float
    total_high: float


def overhead(
    context: EvaluationContext,
    given: Sequence[Defense],
    prompts: Sequence[AttackedPrompt],
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Overhead]:
    """Measure each defense's latency relative to no defense, over N rounds, without cached answers.

    Answers have up to `context.answer_tokens` tokens. Prompts are sent one by one, as a user would. The defenses take
    turns in every round, starting with another one each time, so that drift in the machine's speed affects all alike.
    One-time costs are not counted: opening a defense, including its training, and the first answer after that.

    Raises:
        CannotRunError: the model is behind a server, or a defense lacks an artifact.
        SafetyNeuronsError: there is no prompt or no round.
    """
    if not prompts or rounds < 1:
        raise SafetyNeuronsError(
            "Measuring the overhead of a defense takes at least one prompt and one round. Raise them."
        )
    model = weights_of(context.engine, "The overhead of a defense")
    contenders = [defenses.get("none"), *given]
    spent: list[list[tuple[float, float]]] = [[] for _ in contenders]
    with scratch_folder() as folder:
        # With a folder, adapters trained in the first round are loaded in the others.
        own = replace(context, engine=uncached(context.engine), folder=context.folder or folder)
        with context.listener.task("overhead of the defenses", rounds * len(contenders)) as advance:
            for number in range(rounds):
                for turn in range(len(contenders)):
                    place = (number + turn) % len(contenders)
                    spent[place].append(_spent(contenders[place], own, model, prompts, clock))
                    advance(1)
    return [_overhead(defense.name, times, spent[0]) for defense, times in zip(given, spent[1:], strict=True)]


def _spent(
    defense: Defense,
    context: EvaluationContext,
    model: ChatModel,
    prompts: Sequence[AttackedPrompt],
    clock: Callable[[], float],
) -> tuple[float, float]:
    """Seconds per token that the user read, and for all answers."""
    with opened(defense, context) as defended:
        defended.respond(prompts[:1])
        before = clock()
        responses = [defended.respond([prompt])[0] for prompt in prompts]
        seconds = clock() - before
    written = [
        response.text if response.blocked else response.text.removeprefix(prompt.prefill)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    tokens = sum(len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in written)
    # An empty answer took time, too.
    return seconds / max(1, tokens), seconds


def _overhead(defense: str, times: Sequence[tuple[float, float]], without: Sequence[tuple[float, float]]) -> Overhead:
    pairs = list(zip(times, without, strict=True))
    ratios = ([one[number] / other[number] for one, other in pairs] for number in range(2))
    return Overhead(defense, *(pick(part) for part in ratios for pick in (statistics.median, min, max)))
