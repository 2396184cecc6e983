"""A model besides the one under test: one that judges, compares, or translates.

What an engine is: conversations in, answers out, whoever computes them.

The engine that is a model in this process.

Answers that are kept in a file as they come: a killed evaluation repeats none, and none is computed twice."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from safety_neurons.core.errors import CannotRunError
from safety_neurons.core.files import JsonlCache, fingerprint
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.generate import BATCH_SIZE, Completion, Sampling, generate

if TYPE_CHECKING:
    from safety_neurons.engines.endpoint import Endpoint


class Engine(Protocol):
    """Answers conversations. Its answers are a function of `identity` and of what is asked, as far as it can tell."""

    @property
    def name(self) -> str:
        """What a table calls it."""
        ...

    @property
    def identity(self) -> str:
        """The fingerprint of everything that answers depend on besides the conversation and the sampling."""
        ...

    @property
    def change(self) -> str:
        """What was done to the model (tuned, guarded, calibrated), by unique names; empty for the base model."""
        ...

    @property
    def model(self) -> ChatModel | None:
        """The model, where its weights are in this process."""
        ...

    def under(self, change: str) -> Self:
        """The same engine while the model is changed (tuned, guarded, calibrated) as `change` names it, uniquely."""
        ...

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, what is written after the prefill) for what is not `done`, as it is finished, in any order.

        Greedy unless `sampling` says otherwise.
        """
        ...


Inner = TypeVar("Inner", bound=Engine)


@dataclass(frozen=True)
class WrappedEngine(Generic[Inner]):
    """What engines around another one share: they answer in their own way, and are otherwise the one inside."""

    engine: Inner

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def identity(self) -> str:
        return self.engine.identity

    @property
    def change(self) -> str:
        return self.engine.change

    @property
    def model(self) -> ChatModel | None:
        return self.engine.model

    def under(self, change: str) -> Self:
        return replace(self, engine=self.engine.under(change))


def answers(
    engine: Engine, conversations: Sequence[Conversation], *, max_new_tokens: int, sampling: Sampling | None = None
) -> list[Completion]:
    """What is written after each conversation's prefill, in the order of the conversations."""
    found = dict(engine.answer(conversations, max_new_tokens=max_new_tokens, sampling=sampling))
    return [found[index] for index in range(len(conversations))]


def weights_of(engine: Engine, who: str) -> ChatModel:
    """The engine's model.

    Raises:
        CannotRun: it is behind a server.
    """
    if engine.model is None:
        raise CannotRunError(f"{who} works on the model's weights, and {engine.name} gives text only.")
    return engine.model


@dataclass(frozen=True)
class InProcess:
    """Batches of similar length, halved when memory runs out; `change` names what was done to the model."""

    model: ChatModel
    batch_size: int = BATCH_SIZE
    change: str = ""

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def identity(self) -> str:
        model = self.model
        # A rendered turn shows the template, its options and the system prompt. The batch size, too: who shares a batch
        # with whom decides the rounding.
        turn = model.render("Hello")
        return fingerprint(model.identity, str(model.model.dtype), turn, self.batch_size, self.change)

    def under(self, change: str) -> Self:
        return replace(self, change=f"{self.change}+{change}" if self.change else change)

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        texts = [self.model.render_conversation(conversation) for conversation in conversations]
        return generate(
            self.model, texts, max_new_tokens=max_new_tokens, batch_size=self.batch_size, done=done, sampling=sampling
        )


@dataclass(frozen=True)
class CachedEngine(WrappedEngine[Engine]):
    """An engine that looks its answers up before it computes them. `advance` hears of each answer that is had."""

    kept: JsonlCache
    advance: Advance = ignore

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        identity = self.identity
        keys = [fingerprint(identity, asdict(one), max_new_tokens, sampling) for one in conversations]
        places: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            places.setdefault(key, []).append(index)
        # What shares a batch is a function of what was asked alone, not of what is kept.
        single = [conversations[indices[0]] for indices in places.values()]
        known = frozenset(
            place
            for place, (key, indices) in enumerate(places.items())
            if key in self.kept.entries or done.issuperset(indices)
        )
        distinct = list(places)
        self.advance(sum(len(places[distinct[place]]) for place in known))
        if len(known) < len(single):
            for place, completion in self.engine.answer(
                single, max_new_tokens=max_new_tokens, sampling=sampling, done=known
            ):
                asked = single[place]
                line = {"model": self.name, "change": self.change, "user": asked.turns[-1].content}
                self.kept.add(distinct[place], {**line, "prefill": asked.prefill, **completion._asdict()})
                self.advance(len(places[distinct[place]]))
        for index, key in enumerate(keys):
            if index not in done:
                yield index, Completion(self.kept.entries[key]["text"], self.kept.entries[key]["cut_off"])


def computing_with(engine: Engine, change: Callable[[Engine], Engine]) -> Engine:
    """The engine with what `change` makes of the one that computes: below the kept answers, where there are any."""
    return replace(engine, engine=change(engine.engine)) if isinstance(engine, CachedEngine) else change(engine)


def uncached(engine: Engine) -> Engine:
    """The engine that computes every answer anew."""
    return engine.engine if isinstance(engine, CachedEngine) else engine


def engine_for(endpoint: str | None, model: str, chat_template: str | None = None) -> Engine:
    """A preset, a hub id, a folder or a .gguf file that is loaded here; with `endpoint` a model behind that server.

    `chat_template` is for a model that is loaded here and brings none.

    Raises:
        SafetyNeuronsError: the model cannot be loaded, or the address is none.
    """
    return _loaded(model, chat_template) if endpoint is None else served(endpoint, model)


@functools.cache
def served(endpoint: str, model: str) -> "Endpoint":
    """One for all who ask this server for this model, so that what is asked is counted together."""
    from safety_neurons.engines.endpoint import Endpoint

    return Endpoint(endpoint, model)


# Kept between calls, but not many: the model under test is in memory, too.
@functools.lru_cache(maxsize=2)
def _loaded(name: str, chat_template: str | None) -> Engine:
    pass
    from safety_neurons.models.load import load

    model = load(name)
    if not model.tokenizer.chat_template and chat_template is not None:
        model.tokenizer.chat_template = chat_template
    return InProcess(model)
