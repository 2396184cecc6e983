"""No defense: what all others are compared with."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from safety_neurons.evaluation.contracts import Defended, Defense, EvaluationContext, respond_with


@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """The model as it is."""

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        yield Defended(context.engine, functools.partial(respond_with, context))


DEFENSE = NoDefense(name="none", source="-", description="The model as it is.")
