"""A listener that notes what a run tells, and that can stop it in the middle."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from safety_neurons.core.progress import Advance


class Recorder:
    """Notes tasks, their progress, and what is said.

    With `stop_in`, a pattern, KeyboardInterrupt is raised when `after` items of the tasks that it matches are done.
    """

    def __init__(self, stop_in: str | None = None, after: int = 1) -> None:
        self.stop_in, self.left = stop_in, after
        self.tasks: list[str] = []
        self.said: list[str] = []
        self.advanced: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        self.tasks.append(description)

        def advance(items: int) -> None:
            self.advanced.append((description, items))
            if self.stop_in is not None and re.search(self.stop_in, description):
                self.left -= items
                if self.left <= 0 < items:
                    raise KeyboardInterrupt

        yield advance

    def say(self, message: Any) -> None:
        self.said.append(str(message))

    def steps(self, title: str) -> list[int]:
        """The items of the tasks whose titles begin so, as they were finished."""
        return [items for description, items in self.advanced if description.startswith(title)]
