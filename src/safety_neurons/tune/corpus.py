"""The tuning corpus: the model's own refusals of harmful requests, and its own answers to benign ones."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.storage import write_text

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
