"""The strength at which an intervention moves the model by a given KL divergence: rivals compared at equal effect."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from safety_neurons.core.errors import NotFiniteError

# The search ends when the KL is this near to the target, as a fraction of it, or after this many strengths.
TOLERANCE = 0.05
STEPS = 20
# Until the target lies between two strengths, each is 2 to this many times the one before, or the reverse.
WIDEST = 8.0


@dataclass(frozen=True)
class Matched:
    """A strength and the KL divergence there, in nats per token; `reached`: within the tolerance of the target."""

    strength: float
    kl_divergence: float
    reached: bool


def match_kl(kl_at: Callable[[float], float], target: float, start: float = 1.0) -> Matched:
    """Find a strength at which the KL divergence is `target`, by bisection in the logarithm of the strength.

    The interval is cut where the target would be if the KL were a power of the strength, but not near its ends. Returns
    the strength nearest to the target among those that were tried: the KL of an intervention need not grow with its
    strength, or reach every value. A strength at which the model overflows is too strong.

    Args:
        kl_at: the KL divergence in nats per token at a strength above 0.
        target: above 0.
        start: the first strength to try.

    Raises:
        NotFiniteError: the model overflows at every strength that was tried.
    """
    tried: dict[float, float] = {}
    low: float | None = None
    high: float | None = None
    overflow: NotFiniteError | None = None
    strength = start
    for _ in range(STEPS):
        try:
            kl = kl_at(strength)
        except NotFiniteError as error:
            kl, overflow = math.inf, error
        # NaN, too, comes from activations that overflow.
        tried[strength] = kl = math.inf if math.isnan(kl) else kl
        if abs(kl - target) <= TOLERANCE * target:
            break
        if kl > target:
            high = strength
        else:
            low = strength
        if low is None or high is None:
            # For small changes the KL grows with the square of the strength.
            factor = math.sqrt(target / kl) if kl > 0 else math.inf
            strength *= min(max(factor, 2.0), WIDEST) if high is None else max(min(factor, 0.5), 1 / WIDEST)
        else:
            strength = low * (high / low) ** _cut(tried[low], tried[high], target)
    best = min(tried, key=lambda each: abs(tried[each] - target))
    if overflow is not None and math.isinf(tried[best]):
        raise overflow
    return Matched(best, tried[best], abs(tried[best] - target) <= TOLERANCE * target)


def _cut(low: float, high: float, target: float) -> float:
    """Where to cut between the logarithms of two strengths, from 0 to 1, by the KL at both."""
    if low <= 0 or math.isinf(high):
        return 0.5
    return min(max(math.log(target / low) / math.log(high / low), 0.2), 0.8)
