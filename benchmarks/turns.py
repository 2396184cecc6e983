"""Contenders that take turns: how the benchmarks of time compare, on machines whose speed drifts."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from rich.progress import track

from safety_neurons.cli.console import errors


class Spent(NamedTuple):
    """Seconds that one turn took; processor time is that of all threads."""

    wall: float
    processor: float


def take_turns(works: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Spent]]:
    """Every contender once a round, each round beginning with the next one."""
    spent: dict[str, list[Spent]] = {name: [] for name in works}
    for number in track(range(rounds), "taking turns", console=errors):
        start = number % len(works)
        for name in [*works][start:] + [*works][:start]:
            before = Spent(time.perf_counter(), time.process_time())
            works[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent[name].append(Spent(time.perf_counter() - before.wall, time.process_time() - before.processor))
    return spent


def ratio(spent: Mapping[str, list[Spent]], of: str, over: str, clock: str = "wall") -> float:
    """The median over the rounds of one contender's time over another's."""
    pairs = zip(spent[of], spent[over], strict=True)
    return statistics.median(getattr(one, clock) / getattr(other, clock) for one, other in pairs)
