"""Varied answers: a model that is pushed to refuse says one sentence again and again, and would learn just that."""

import math
import re
from collections import Counter
from collections.abc import Sequence


def varied(candidates: Sequence[Sequence[str]], largest_share: float) -> list[int | None]:
    """For each prompt which of its candidates to take, so that no sentence stands in too many of the taken ones.

    Args:
        candidates: the answers that were drawn for each prompt, in the order in which they are preferred.
        largest_share: the largest share of the taken answers in which a sentence may stand; a sentence may always
            stand in one.

    Returns:
        The index of a candidate, or None where all that a prompt has are said too often already.
    """
    limit = _limit(len(candidates), largest_share)
    while True:
        taken = _take(candidates, limit)
        # Fewer were taken than there are prompts, so a share is fewer of them.
        lower = _limit(sum(choice is not None for choice in taken), largest_share)
        if lower >= limit:
            return taken
        limit = lower


def _limit(answers: int, share: float) -> int:
    return max(1, math.floor(answers * share))


def _take(candidates: Sequence[Sequence[str]], limit: int) -> list[int | None]:
    said: Counter[str] = Counter()
    taken: list[int | None] = []
    for answers in candidates:
        rare = (place for place, answer in enumerate(answers) if all(said[one] < limit for one in sentences(answer)))
        choice = next(rare, None)
        taken.append(choice)
        if choice is not None:
            said.update(sentences(answers[choice]))
    return taken


def sentences(text: str) -> set[str]:
    """The different sentences of an answer, without differences in case, spacing and marks at their ends."""
    parts = re.split(r"(?<=[.!?])\s+|\n+", text)
    return {" ".join(part.casefold().split()).rstrip(".!? ") for part in parts} - {""}
