"""How long work tells that it moves on, without knowing who listens."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

# Called with the number of items that were finished since the last call.
Advance = Callable[[int], None]


def ignore(_items: int) -> None:
    """For callers that show no progress."""


class Listener(Protocol):
    """Who hears of a run: the command line draws bars and tables, a library user may want nothing."""

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """A piece of work of `total` items begins; it ends with the context."""
        ...

    def say(self, message: Any) -> None:
        """Something that a reader should see: text or a rich renderable."""
        ...


class Silence:
    """Hears nothing."""

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        return nullcontext(ignore)

    def say(self, message: Any) -> None:
        pass


@dataclass(frozen=True)
class Within(Silence):
    """Counts the answers of several questions on one bar."""

    advance: Advance

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        return nullcontext(self.advance)
