"""How long-running code reports progress, whoever shows it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

# Called with the number of items finished since the last call.
Advance = Callable[[int], None]


def ignore(_items: int) -> None:
    """Show no progress."""


class Listener(Protocol):
    """Receives the progress and the messages of a run: the command line shows them, the library ignores them."""

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Open a task of `total` items; it ends with the context."""

    def say(self, message: Any) -> None:
        """Show a message: text or a rich renderable."""


class Silence:
    """Ignores everything."""

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        return nullcontext(ignore)

    def say(self, message: Any) -> None:
        pass


@dataclass(frozen=True)
class Within(Silence):
    """Adds the progress of all its tasks to one enclosing task."""

    advance: Advance

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        return nullcontext(self.advance)
