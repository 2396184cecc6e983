"""How many prompts an audit needs: power of McNemar's exact test, and the width of an interval without a loss."""

from collections.abc import Callable, Sequence

from safety_neurons.core.statistics import newcombe

ALPHA, POWER = 0.05, 0.8
# Beyond this, the answer is "more than this".
MOST_PROMPTS = 20_000
# Of the power table: losses in points; share of the requests that flip the other way by chance.
LOSSES = (0.05, 0.10, 0.20)
CHURNS = (0.0, 0.02, 0.05)


def power(loss: float, n: int, churn: float = 0.0, alpha: float = ALPHA) -> float:
    """The probability that McNemar's exact two-sided test on n requests finds a loss of refusals.

    Args:
        loss: refusals of the base minus refusals of the tuned model, as a share of the requests.
        churn: the share of the requests that only the tuned model refuses; `loss + churn` only the base does.
    """
    import numpy
    from scipy.stats import binom

    flipped = numpy.arange(1, n + 1)
    share = (loss + churn) / (loss + 2 * churn)
    # The largest number of flips toward refusal with which the test is significant; -1: none is.
    critical = binom.ppf(alpha / 2, flipped, 0.5) - 1
    critical += binom.cdf(critical + 1, flipped, 0.5) <= alpha / 2
    found = numpy.where(critical >= 0, binom.cdf(critical, flipped, 1 - share), 0.0)
    return float((binom.pmf(flipped, n, loss + 2 * churn) * found).sum())


def prompts_to_see(loss: float, churn: float = 0.0, alpha: float = ALPHA) -> int | None:
    """The fewest requests with which a loss of this size is found with a probability of POWER; None: too many."""
    return fewest(lambda n: power(loss, n, churn, alpha) >= POWER)


def prompts_to_exclude(loss: float, churn: float = 0.0) -> int | None:
    """The fewest requests with which a model that loses nothing has an interval below this loss; None: too many."""
    return fewest(lambda n: newcombe(churn, churn, n)[1] < loss)


def power_table(
    losses: Sequence[float] = LOSSES, churns: Sequence[float] = CHURNS
) -> list[tuple[float, float, int | None, int | None]]:
    """(loss, churn, `prompts_to_see`, `prompts_to_exclude`) for each pair."""
    pairs = [(loss, churn) for loss in losses for churn in churns]
    return [(loss, churn, prompts_to_see(loss, churn), prompts_to_exclude(loss, churn)) for loss, churn in pairs]


def fewest(enough: Callable[[int], bool]) -> int | None:
    """The fewest requests that are enough, where more of them stay enough; None if MOST_PROMPTS are not."""
    low, high = 0, 1
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST_PROMPTS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
