"""Answers that are kept in a file as they come: a killed evaluation repeats none, and none is computed twice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from safety_neurons.engines.engine import Around, Engine
from safety_neurons.kept_lines import KeptLines
from safety_neurons.models.conversation import Conversation
from safety_neurons.models.generate import Completion, Sampling
from safety_neurons.progress import Advance, ignore
from safety_neurons.storage import fingerprint


@dataclass(frozen=True)
class Kept(Around[Engine]):
    """An engine that looks its answers up before it computes them. `advance` hears of each answer that is had."""

    kept: KeptLines
    advance: Advance = ignore

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        keys = [fingerprint(self.identity, asdict(one), max_new_tokens, sampling) for one in conversations]
        places: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            places.setdefault(key, []).append(index)
        # What shares a batch is a function of what was asked alone, not of what is kept.
        single = [conversations[indices[0]] for indices in places.values()]
        known = frozenset(
            place
            for place, (key, indices) in enumerate(places.items())
            if key in self.kept.by_key or done.issuperset(indices)
        )
        if len(known) < len(single):
            distinct = list(places)
            for place, completion in self.engine.answer(
                single, max_new_tokens=max_new_tokens, sampling=sampling, done=known
            ):
                self.kept.add(distinct[place], completion._asdict())
                self.advance(1)
        for index, key in enumerate(keys):
            if index not in done:
                yield index, Completion(self.kept.by_key[key]["text"], self.kept.by_key[key]["cut_off"])


def computing_with(engine: Engine, change: Callable[[Engine], Engine]) -> Engine:
    """The engine with what `change` makes of the one that computes: below the kept answers, where there are any."""
    return replace(engine, engine=change(engine.engine)) if isinstance(engine, Kept) else change(engine)


def uncached(engine: Engine) -> Engine:
    """The engine that computes every answer anew."""
    return engine.engine if isinstance(engine, Kept) else engine
