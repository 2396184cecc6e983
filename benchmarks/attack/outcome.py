"""What attacks did, counted: a row for each kind of attack, and every harm with its circumstances."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from safety_neurons.core.progress import Advance, Listener, Silence, ignore
from safety_neurons.core.tables import Table, numbers, words

T = TypeVar("T")

# Each harm, by the heading of its column.
HARMS = {
    "traceback": "tracebacks",
    "hang": "hangs",
    "lost": "files lost",
    "unnamed": "file not named",
    "dead end": "advice leads nowhere",
    "differs": "other results",
    "ran code": "code run",
    "secret": "secrets",
    "raw": "raw characters",
    "entered": "locks broken",
}


@dataclass(frozen=True)
class Harm:
    """One harm (a key of HARMS): what was attacked how, and what was seen."""

    kind: str
    where: str
    seen: str


@dataclass
class Tally:
    """The attempts of one kind of attack, and the harms that they did."""

    name: str
    tried: int = 0
    harms: list[Harm] = field(default_factory=list)

    def note(self, kind: str, where: str, seen: str) -> None:
        """Count a harm."""
        assert kind in HARMS
        self.harms.append(Harm(kind, where, seen[-2000:]))


class Lines(Silence):
    """Says what begins. A bar has a thread, and a process that is forked beside it may inherit a lock that it holds."""

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        print(f"{description}: {total:,}", flush=True)
        return nullcontext(ignore)


def tracked(tally: Tally, cases: Sequence[T], listener: Listener) -> Iterator[T]:
    """The cases one after the other, counted."""
    with listener.task(tally.name, len(cases)) as advance:
        for case in cases:
            tally.tried += 1
            yield case
            advance(1)


def table(tallies: Sequence[Tally]) -> Table:
    """A row for each kind of attack, and a column for each harm that any of them did."""
    done = {harm.kind for tally in tallies for harm in tally.harms}
    shown = {kind: name for kind, name in HARMS.items() if kind in done}
    return Table.of(
        "Attacks on the tool itself",
        (*words("attack"), *numbers("tried", "harms", *shown.values())),
        ([one.name, f"{one.tried:,}", len(one.harms), *_counts(one, list(shown))] for one in tallies),
    )


def _counts(tally: Tally, kinds: Sequence[str]) -> Iterator[int]:
    counts = Counter(harm.kind for harm in tally.harms)
    yield from (counts[kind] for kind in kinds)


def as_json(tallies: Sequence[Tally]) -> list[dict[str, Any]]:
    """Everything that was counted."""
    return [{"attack": one.name, "tried": one.tried, "harms": [vars(harm) for harm in one.harms]} for one in tallies]
