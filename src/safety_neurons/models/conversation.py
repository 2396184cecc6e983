"""What is said to a model: turns, and the beginning of the answer that is asked for."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self


class Turn(NamedTuple):
    """One message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns that end with the user's; the assistant's answer begins with `prefill`, which may be empty."""

    turns: tuple[Turn, ...]
    prefill: str = ""

    @classmethod
    def of(cls, user: str, prefill: str = "", system: str | None = None, before: tuple[Turn, ...] = ()) -> Self:
        """A turn of the user's, after a system prompt and earlier turns where there are any."""
        first = () if system is None else (Turn("system", system),)
        return cls((*first, *before, Turn("user", user)), prefill)
