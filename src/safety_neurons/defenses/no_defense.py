"""No defence: what all others are compared with."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from safety_neurons.defenses.defense import Defended, Defense, respond_with
from safety_neurons.engines.bench import Bench


@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """The model as it is."""

    @contextlib.contextmanager
    def opened(self, bench: Bench) -> Iterator[Defended]:
        yield Defended(bench.engine, functools.partial(respond_with, bench))


DEFENSE = NoDefense(name="none", source="-", description="The model as it is.")
