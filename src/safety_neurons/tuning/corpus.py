"""The tuning corpus: the model's own refusals of harmful requests, and its own answers to benign ones."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import write_text
from safety_neurons.models.template import Turn
from safety_neurons.prompts.read import read_table

PairKind = Literal["refusal", "benign", "borderline"]


@dataclass(frozen=True)
class Pair:
    """A training example: the user's turn, the beginning of the assistant's turn (prefill), and the rest of it.

    A `cut_off` response reached the token limit, so the end of the turn is not learned from it. `prompt_id` is the
    prompt that the pair was made from, and `before` are the earlier turns of its conversation. Two pairs with the same
    `match`, an unsafe request and its safe counterpart, are trained on in the same batch.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    kind: PairKind
    prompt_id: str
    user: str
    prefill: str
    response: str
    cut_off: bool = False
    before: tuple[Turn, ...] = ()
    match: str = ""


@dataclass(frozen=True)
class Corpus:
    """The pairs to train on. `notes` say what was found out about the form of their file."""

    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def counts(self) -> dict[str, int]:
        """The number of pairs of each kind."""
        kinds = [pair.kind for pair in self.pairs]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    def save(self, path: Path) -> None:
        """Write one pair per line, for the owner alone: the answers are not redacted."""
        lines = (json.dumps(_to_json(pair), ensure_ascii=False) + "\n" for pair in self.pairs)
        write_text(path, "".join(lines), private=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read pairs: kind, user and response; the other fields of `Pair` are optional.

        One JSON object per line, or another form of table that prompts are read from.

        Raises:
            SafetyNeuronsError: the file is missing or unreadable, or a row is not a pair.
        """
        if path.is_file() and path.stat().st_size == 0:
            return cls(())
        table = read_table(path, str(path))
        pairs = []
        for row in table.rows:
            try:
                pairs.append(_PAIR.validate_python(_OPTIONAL | {k: v for k, v in row.values.items() if v is not None}))
            except pydantic.ValidationError as error:
                problem = error.errors()[0]
                place = "".join(f"{part}: " for part in problem["loc"])
                row_name = f"{table.unit.capitalize()} {row.place}"
                raise SafetyNeuronsError(
                    f"{row_name} of the corpus {path} is not a pair: {place}{problem['msg']}. Each "
                    'line is a JSON object such as {"kind": "refusal", "user": "...", "response": "..."}; kinds are '
                    "refusal, benign and borderline. Correct it."
                ) from error
        return cls(tuple(pairs), table.notes)


def _to_json(pair: Pair) -> dict[str, Any]:
    """The fields of a pair, without earlier turns and a counterpart where it has none."""
    values = asdict(pair) | {"before": [turn._asdict() for turn in pair.before]}
    return {name: value for name, value in values.items() if value or name not in ("before", "match")}


_PAIR = pydantic.TypeAdapter(Pair)
# Defaults for the fields that a file may omit.
_OPTIONAL = {"prompt_id": "", "prefill": ""}


def varied(candidates: Sequence[Sequence[str]], largest_share: float) -> list[int | None]:
    """Choose one candidate per prompt, so that no sentence is over-represented among the chosen ones.

    A model that is calibrated to refuse repeats one sentence, and training on that would teach little else.

    Args:
        candidates: the sampled answers to each prompt, in order of preference.
        largest_share: maximum fraction of the chosen answers that may share a sentence; one answer may always have it.

    Returns:
        The index of a candidate, or None if all candidates of a prompt repeat over-represented sentences.
    """
    limit = _limit(len(candidates), largest_share)
    while True:
        taken = _take(candidates, limit)
        # Fewer answers were chosen than there are prompts, so the same share is a lower limit.
        lower = _limit(sum(choice is not None for choice in taken), largest_share)
        if lower >= limit:
            return taken
        limit = lower


def _limit(answers: int, share: float) -> int:
    return max(1, math.floor(answers * share))


def _take(candidates: Sequence[Sequence[str]], limit: int) -> list[int | None]:
    counts: Counter[str] = Counter()
    taken: list[int | None] = []
    for answers in candidates:
        rare = (place for place, answer in enumerate(answers) if all(counts[one] < limit for one in sentences(answer)))
        choice = next(rare, None)
        taken.append(choice)
        if choice is not None:
            counts.update(sentences(answers[choice]))
    return taken


def sentences(text: str) -> set[str]:
    """The distinct sentences of an answer, regardless of case, spacing and final punctuation."""
    parts = re.split(r"(?<=[.!?])\s+|\n+", text)
    return {" ".join(part.casefold().split()).rstrip(".!? ") for part in parts} - {""}
