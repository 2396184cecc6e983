"""The tuning corpus: the model's own refusals of harmful requests, and its own answers to benign ones.

Varied answers: a model that is pushed to refuse says one sentence again and again, and would learn just that."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import write_text


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


Kind = Literal["refusal", "benign", "borderline"]


@dataclass(frozen=True)
class Pair:
    """One training example: what the user says, what the assistant's turn starts with, and what to answer.

    `cut_off` responses ran into the token limit: the end of the turn must not be learnt from them. `prompt_id` says
    from which prompt of a set the pair was made.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    kind: Kind
    prompt_id: str
    user: str
    prefill: str
    response: str
    cut_off: bool = False


@dataclass(frozen=True)
class Corpus:
    """The pairs that are trained on."""

    pairs: tuple[Pair, ...]

    def counts(self) -> dict[str, int]:
        """How many pairs there are of each kind."""
        kinds = [pair.kind for pair in self.pairs]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    def save(self, path: Path) -> None:
        """Write one pair a line."""
        write_text(path, "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in self.pairs))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read pairs, one JSON object a line: kind, user and response; prompt_id, prefill and cut_off if there are any.

        Raises:
            SafetyNeuronsError: the file is missing or cannot be read, or a line is not a pair.
        """
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError as error:
            raise SafetyNeuronsError(f"The corpus {path} does not exist.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise SafetyNeuronsError(f"The corpus {path} cannot be read: {error}.") from error
        pairs = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                pairs.append(_PAIR.validate_python(_OPTIONAL | _OBJECT.validate_json(line)))
            except pydantic.ValidationError as error:
                problem = error.errors()[0]
                place = "".join(f"{part}: " for part in problem["loc"])
                raise SafetyNeuronsError(
                    f"Line {number} of the corpus {path} is not a pair: {place}{problem['msg']}. Each line is a JSON "
                    'object such as {"kind": "refusal", "user": "...", "response": "..."}; kinds are refusal, benign '
                    "and borderline."
                ) from error
        return cls(tuple(pairs))


_PAIR = pydantic.TypeAdapter(Pair)
_OBJECT = pydantic.TypeAdapter(dict[str, Any])
# What a pair that somebody else wrote may leave out.
_OPTIONAL = {"prompt_id": "", "prefill": ""}
