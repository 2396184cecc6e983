"""How long work tells that it moves on, without knowing who listens."""

from collections.abc import Callable

# Called with the number of items that were finished since the last call.
Advance = Callable[[int], None]


def ignore(_items: int) -> None:
    """For callers that show no progress."""
