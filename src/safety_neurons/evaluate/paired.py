"""Two evaluations of the same prompts side by side: what differs, by how much, and whether it may be chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safety_neurons.evaluate.rows import Difference, Rate, mcnemar, paired_difference, rate
from safety_neurons.judges import Verdict

# The verdicts of one attack and one judge, by prompt id.
Verdicts = Mapping[str, Verdict]


def by_request(ids: Sequence[str], verdicts: Sequence[Verdict | None]) -> Verdicts:
    """Without the requests that were not made, whose verdict is None."""
    return {name: verdict for name, verdict in zip(ids, verdicts, strict=True) if verdict is not None}


@dataclass(frozen=True)
class Paired:
    """Two sets of verdicts on the prompts that both have a verdict on.

    `first` and `second` are the shares of the counted verdict, `difference` is second minus first. `gained` are the
    prompts that only the second has it on, `lost` those that only the first has. `p_value` is McNemar's, exact and
    two-sided. The counts are of prompts that were left out: unscored on a side, or only there.
    """

    first: Rate
    second: Rate
    difference: Difference
    p_value: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    unscored_first: int
    unscored_second: int
    only_first: int
    only_second: int


def compare_verdicts(first: Verdicts, second: Verdicts, counted: Verdict = "complied", seed: int = 0) -> Paired:
    """Compare two sets of verdicts, prompt by prompt.

    A prompt that is unscored on either side says nothing of the difference, and is left out of both.
    """
    shared = [prompt for prompt in first if prompt in second]
    judged = [prompt for prompt in shared if "unscored" not in (first[prompt], second[prompt])]
    before, after = [first[prompt] for prompt in judged], [second[prompt] for prompt in judged]
    hits, hits_after = [one == counted for one in before], [one == counted for one in after]
    flips = list(zip(judged, hits, hits_after, strict=True))
    return Paired(
        first=rate(before, counted),
        second=rate(after, counted),
        difference=paired_difference([after], [before], counted, seed),
        p_value=mcnemar(hits, hits_after),
        gained=tuple(prompt for prompt, one, other in flips if other and not one),
        lost=tuple(prompt for prompt, one, other in flips if one and not other),
        unscored_first=sum(first[prompt] == "unscored" for prompt in shared),
        unscored_second=sum(second[prompt] == "unscored" for prompt in shared),
        only_first=len(first) - len(shared),
        only_second=len(second) - len(shared),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in their order: below 5% with at most 5% for any false one."""
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted
