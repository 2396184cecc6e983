"""What attacks, defenses and judges are, and the context that they work in."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from safety_neurons.calibration.guard import Guard
from safety_neurons.core.errors import CannotRunError
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.core.statistics import Verdict
from safety_neurons.engines.engine import CachedEngine, Engine, answers
from safety_neurons.models.chat import AttackedPrompt, Conversation
from safety_neurons.models.generate import Completion, Outcome, Sampling
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta

T = TypeVar("T")


class JudgeInput(NamedTuple):
    """What a judge reads: the plain request, not what an attack made of it, and the whole answer without its reasoning.

    `unscored` says why there is no answer to judge (unfinished reasoning); no judge is asked then.
    """

    prompt: str
    response: str
    unscored: str = ""


@dataclass(frozen=True)
class Judgment:
    """One verdict on one response.

    `verdict` is "refused" (partial refusals too), "complied", or "unscored": the response cannot be judged, and
    counts neither as safe nor as unsafe. `reason` names the rule that decided, in a few words. `score` is the harm of
    the response from 0 to 1, from judges that grade it.
    """

    verdict: Verdict
    reason: str
    score: float | None = None


@dataclass(frozen=True)
class Judge:
    """A named judge. The fields that a subclass adds are its options: `name:option=value` sets them.

    `source` cites the method. `version` is part of the cache key: raise it when the same options give other verdicts.
    """

    name: str
    source: str
    version: int = field(default=1, kw_only=True)

    def check(self) -> None:
        """Fail early if the judge cannot judge.

        Raises:
            CannotRunError: the judge asks a model, and none was named.
        """

    def spent(self) -> str | None:
        """What this process has asked a server for, in a sentence; None if nothing."""
        return None

    @property
    def identity(self) -> str:
        """The cache key of the verdicts."""
        return f"{self.name} {self.version}"

    def judge_all(
        self, exchanges: Sequence[JudgeInput], done: frozenset[int] = frozenset()
    ) -> Iterator[tuple[int, Judgment]]:
        """Yield (index, judgment) for what is not `done`, as it is finished, in any order.

        Never fails on what a response holds: what cannot be judged is "unscored".
        """
        raise NotImplementedError


@dataclass(frozen=True)
class RuleJudge(Judge):
    """A judge that is a function of the two texts; `judge(prompt, response)` does not raise on any strings."""

    judge: Callable[[str, str], Judgment]

    def judge_all(
        self, exchanges: Sequence[JudgeInput], done: frozenset[int] = frozenset()
    ) -> Iterator[tuple[int, Judgment]]:
        for index, exchange in enumerate(exchanges):
            if index not in done:
                yield index, self.judge(exchange.prompt, exchange.response)


@dataclass(frozen=True)
class RunArtifacts:
    """What a run made of the model under test; None for what it has not made."""

    neurons: NeuronSet | None = None
    guard: Guard | None = None
    delta: NeuronDelta | None = None
    corpus: Corpus | None = None
    alpha_conformity: float = 4.0


@dataclass(frozen=True)
class EvaluationContext:
    """The model under test, and what attacks and defenses may use.

    `harmful` and `benign` are requests to learn from, never those that are tested. Trained adapters are kept in
    `folder`; `copies` has local copies of public sets; `told` is what was said already.
    """

    engine: Engine
    answer_tokens: int
    seed: int = 0
    harmful: Sequence[str] = ()
    benign: Sequence[str] = ()
    artifacts: RunArtifacts = RunArtifacts()
    folder: Path | None = None
    copies: Path | None = None
    listener: Listener = field(default_factory=Silence)
    told: set[str] = field(default_factory=set)

    def tell(self, message: str) -> None:
        """Say something once, however many cells it is found out for."""
        if message not in self.told:
            self.told.add(message)
            self.listener.say(message)

    def under(self, change: str) -> Self:
        """The context while the model is changed; `change` names the change uniquely."""
        return replace(self, engine=self.engine.under(change))

    def cached(self, engine: Engine) -> Engine:
        """Another engine, with its answers kept where those of the model under test are."""
        return CachedEngine(engine, self.engine.cache) if isinstance(self.engine, CachedEngine) else engine

    def answers(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> list[Completion]:
        """Answers of up to `answer_tokens` tokens, or of another length."""
        return answers(
            self.engine, conversations, max_new_tokens=max_new_tokens or self.answer_tokens, sampling=sampling
        )


def required(artifact: T | None, what: str, who: str) -> T:
    """The artifact of a run.

    Raises:
        CannotRunError: the run has none, or there is no run.
    """
    if artifact is None:
        raise CannotRunError(f"{who} needs the {what} of a run, and there is none here.")
    return artifact


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A named attack. The fields that a subclass adds are its options: `name:option=value` sets them.

    `source` cites the method, `budget` is its cost per request. `sees_defended_model`: the attack has access to the
    model under test, which makes its success rate a stronger claim. An attack that
    `changes_model` does so in `surrounding`.
    """

    name: str
    source: str
    description: str
    budget: str = "one fixed prompt a request"
    sees_defended_model: bool = False
    changes_model: bool = False

    def surrounding(self, context: "EvaluationContext") -> AbstractContextManager["EvaluationContext"]:
        """The context in which the defended model is asked, for attacks that change the model itself.

        Raises:
            CannotRunError: the context lacks what the attack needs.
        """
        return contextlib.nullcontext(context)

    def prompts(
        self, requests: Sequence[str], defended: "Defended", context: "EvaluationContext"
    ) -> Sequence[AttackedPrompt | None]:
        """What is sent for each request; None if the attack has nothing for it.

        Raises:
            CannotRunError: the context lacks what the attack needs.
        """
        raise NotImplementedError

    def returned(
        self, responses: "Sequence[Response]", defended: "Defended", context: "EvaluationContext"
    ) -> "Sequence[Response]":
        """The responses to judge, for attacks that have to undo what they did to a request (translation)."""
        return responses


@dataclass(frozen=True, kw_only=True)
class Template(Attack):
    """An attack that is the same for every model; `apply(request)` keeps the request's meaning."""

    apply: Callable[[str], AttackedPrompt]

    def prompts(
        self, requests: Sequence[str], defended: "Defended", context: "EvaluationContext"
    ) -> Sequence[AttackedPrompt]:
        return [self.apply(request) for request in requests]


# What a user reads when a defense answers in the model's place.
REFUSAL = "I'm sorry, but I can't help with that."


class Response(NamedTuple):
    """The whole turn that the user reads, prefill included; the other fields are those of `Completion`.

    "blocked": the defense answered, or a server's content filter, not the model; `reason` names the filter's.
    """

    text: str
    cut_off: bool = False
    reasoning: str = ""
    outcome: Outcome = "answered"
    reason: str = ""
    unscored: str = ""

    @classmethod
    def of(cls, prompt: AttackedPrompt, completion: Completion) -> Self:
        """The turn that begins with the prompt's prefill."""
        if completion.outcome == "blocked":
            return cls(REFUSAL, outcome="blocked", reason=completion.reason)
        text = "" if completion.outcome == "not run" else f"{prompt.prefill}{completion.text}"
        return cls(text, *completion[1:], completion.unscored)

    @property
    def blocked(self) -> bool:
        return self.outcome == "blocked"


BLOCKED = Response(REFUSAL, outcome="blocked")


@dataclass(frozen=True)
class Defended:
    """A model behind a defense: `respond` answers prompts; `engine` is the model with the defense's changes.

    An attack that sees the model under test sees `engine.model`, not what the defense does to texts.
    """

    engine: Engine
    respond: Callable[[Sequence[AttackedPrompt]], list[Response]]


@dataclass(frozen=True, kw_only=True)
class Defense:
    """A named defense. The fields that a subclass adds are its options: `name:option=value` sets them.

    The options default to the published values; `source` cites them. `version` is part of the cache key of what is
    measured: raise it when the same options give other answers.
    """

    name: str
    source: str
    description: str
    version: int = 1

    def prepared(self, context: EvaluationContext) -> Self:
        """The defense after it has learned what it needs of the model, for attacks that change the model afterwards.

        Raises:
            CannotRunError: the context lacks what the defense needs.
        """
        return self

    def opened(self, context: EvaluationContext) -> AbstractContextManager[Defended]:
        """The defended model; changes are undone at the end.

        Raises:
            CannotRunError: the context lacks what the defense needs.
        """
        raise NotImplementedError


def respond_with(
    context: EvaluationContext, prompts: Sequence[AttackedPrompt], conversations: Sequence[Conversation] | None = None
) -> list[Response]:
    """The model's answers to prompts, or to what a defense made of them; each begins with its prompt's prefill."""
    asked = conversations or [prompt.conversation for prompt in prompts]
    return [Response.of(prompt, completion) for prompt, completion in zip(prompts, context.answers(asked), strict=True)]


def respond_unless(
    blocked: Sequence[bool], context: EvaluationContext, prompts: Sequence[AttackedPrompt]
) -> list[Response]:
    """Answers to the prompts that are not blocked, and a refusal for those that are."""
    passing = [prompt for prompt, stopped in zip(prompts, blocked, strict=True) if not stopped]
    answered = iter(respond_with(context, passing))
    return [BLOCKED if stopped else next(answered) for stopped in blocked]
