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
    def of(cls, user: str, prefill: str = "", system: str | None = None) -> Self:
        """One turn of the user's, after a system prompt where there is one."""
        before = () if system is None else (Turn("system", system),)
        return cls((*before, Turn("user", user)), prefill)
