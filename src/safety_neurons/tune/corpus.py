"""The tuning corpus: the model's own refusals of harmful requests, and its own answers to benign ones."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.storage import read_lines, write_text

Kind = Literal["refusal", "benign", "borderline"]


@dataclass(frozen=True)
class Pair:
    """One training example: what the user says, what the assistant's turn starts with, and what to answer.

    `cut_off` responses ran into the token limit: the end of the turn must not be learnt from them.
    """

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
        """Read what `save` wrote.

        Raises:
            SafetyNeuronsError: the file is missing, or a line is not a pair.
        """
        if not path.exists():
            raise SafetyNeuronsError(f"{path} does not exist; run `tune` to make the corpus.")
        try:
            return cls(tuple(Pair(**line) for line in read_lines(path)))
        except (TypeError, ValueError) as error:
            raise SafetyNeuronsError(f"{path} is not a corpus: {error}.") from error
