"""Engines answer conversations: a model in this process, one behind a server, or a cache of answers around either."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from safety_neurons.core.errors import CannotRunError
from safety_neurons.core.files import fingerprint
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.core.records import JsonlCache, Line
from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.generate import BATCH_SIZE, Completion, Outcome, Sampling, generate
from safety_neurons.models.tokens import end_tokens

if TYPE_CHECKING:
    from safety_neurons.engines.endpoint import Endpoint


class Engine(Protocol):
    """Answers conversations. To its knowledge, answers depend only on `identity` and the arguments of `answer`."""

    @property
    def name(self) -> str:
        """The name in tables."""

    @property
    def identity(self) -> str:
        """Hash of everything that answers depend on besides the arguments of `answer`."""

    @property
    def change(self) -> str:
        """What was done to the model (tuned, guarded, calibrated), by unique names; empty for the base model."""

    @property
    def model(self) -> ChatModel | None:
        """The model, if its weights are in this process."""

    def under(self, change: str) -> Self:
        """The same engine for the changed (tuned, guarded, calibrated) model; `change` must be unique."""

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, the completion after the prefill) of what is not `done`, in any order; greedy by default."""


InnerEngine = TypeVar("InnerEngine", bound=Engine)


@dataclass(frozen=True)
class WrappedEngine(Generic[InnerEngine]):
    """Base of engines around another one, from which they differ only in how they answer."""

    engine: InnerEngine

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
    """The completions after the prefills, in the order of the conversations."""
    found = dict(engine.answer(conversations, max_new_tokens=max_new_tokens, sampling=sampling))
    return [found[index] for index in range(len(conversations))]


def weights_of(engine: Engine, who: str) -> ChatModel:
    """The engine's model.

    Raises:
        CannotRunError: it is behind a server.
    """
    if engine.model is None:
        raise CannotRunError(f"{who} needs the model's weights, but {engine.name} provides text only.")
    return engine.model


@dataclass(frozen=True)
class InProcess:
    """A model in this process; `change` names what was done to it."""

    model: ChatModel
    batch_size: int = BATCH_SIZE
    change: str = ""

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def identity(self) -> str:
        model = self.model
        # The batch size is left out: it changes answers by rounding alone, and they must not be asked again for that.
        limit = model.reasoning_tokens if model.may_think else 0
        parts = (model.identity, str(model.model.dtype), model.rendering, end_tokens(model), limit)
        return fingerprint(*parts, self.change)

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


class CachedAnswer(Line):
    """An answer of a model, and what was asked: a line of responses.jsonl."""

    model: str
    change: str
    user: str
    prefill: str
    text: str
    cut_off: bool
    reasoning: str = ""
    outcome: Outcome = "answered"
    reason: str = ""

    @property
    def completion(self) -> Completion:
        return Completion(self.text, self.cut_off, self.reasoning, self.outcome, self.reason)


@dataclass(frozen=True)
class CachedEngine(WrappedEngine[Engine]):
    """An engine that looks up its answers in a cache before computing them; `advance` counts computed answers."""

    cache: JsonlCache[CachedAnswer]
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
        keys = [fingerprint(identity, asdict(each), max_new_tokens, sampling) for each in conversations]
        places: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            places.setdefault(key, []).append(index)
        unique_keys = list(places)
        # The inner engine gets all conversations, also cached ones, so that its batches do not depend on the cache.
        distinct = [conversations[indices[0]] for indices in places.values()]
        cached = frozenset(
            place
            for place, (key, indices) in enumerate(places.items())
            if key in self.cache.entries or done.issuperset(indices)
        )
        self.advance(sum(len(places[unique_keys[place]]) for place in cached))
        if len(cached) < len(distinct):
            new = self.engine.answer(distinct, max_new_tokens=max_new_tokens, sampling=sampling, done=cached)
            for place, completion in new:
                asked = distinct[place]
                self.cache.add(
                    CachedAnswer(
                        key=unique_keys[place],
                        model=self.name,
                        change=self.change,
                        user=asked.turns[-1].content,
                        prefill=asked.prefill,
                        **completion._asdict(),
                    )
                )
                self.advance(len(places[unique_keys[place]]))
        for index, key in enumerate(keys):
            if index not in done:
                yield index, self.cache.entries[key].completion


def computing_with(engine: Engine, change: Callable[[Engine], Engine]) -> Engine:
    """Apply `change` to the engine that computes, below the cache if there is one."""
    return replace(engine, engine=change(engine.engine)) if isinstance(engine, CachedEngine) else change(engine)


def uncached(engine: Engine) -> Engine:
    """The engine without its cache."""
    return engine.engine if isinstance(engine, CachedEngine) else engine


def engine_for(endpoint: str | None, model: str, chat_template: str | None = None) -> Engine:
    """The engine of a model besides the one under test: behind the server `endpoint`, or loaded in this process.

    `model` is the server's name for it, or else a preset, hub id, folder or .gguf file; `chat_template` is used if a
    loaded model has none.

    Raises:
        SafetyNeuronsError: the model cannot be loaded, or the URL is invalid.
    """
    return _loaded(model, chat_template) if endpoint is None else served(endpoint, model)


@functools.cache
def served(endpoint: str, model: str) -> "Endpoint":
    """The shared `Endpoint` of a server's model, so that its usage is counted together.

    Raises:
        SafetyNeuronsError: the URL is invalid, or the API key may not be sent to it.
    """
    # Imported late, as `Endpoint` needs anyio and most runs have no server.
    from safety_neurons.engines.connection import key_for
    from safety_neurons.engines.endpoint import Endpoint

    key_for(endpoint)
    return Endpoint(endpoint, model)


# Few models, as the model under test is in memory too.
@functools.lru_cache(maxsize=2)
def _loaded(name: str, chat_template: str | None) -> Engine:
    from safety_neurons.models.load import load

    model = load(name)
    if not model.tokenizer.chat_template and chat_template is not None:
        model.tokenizer.chat_template = chat_template
    return InProcess(model)
