"""Validation of a tuned or guarded model: attack success and over-refusal on the validation prompts."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

from safety_neurons.core.fields import Share
from safety_neurons.core.progress import Advance, Within, ignore
from safety_neurons.core.statistics import Rate, Verdict, mean_rate, share
from safety_neurons.engines.engine import CachedEngine
from safety_neurons.evaluation.judging import JudgedAnswer
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.models.generate import in_batches
from safety_neurons.models.likelihood import kl_divergence
from safety_neurons.prompts import Prompt
from safety_neurons.runs.context import RunContext
from safety_neurons.tuning.disguises import Disguise, disguised, for_validation, renderable


@dataclass(frozen=True)
class Validation:
    """Attack success and over-refusal; lower is better."""

    attack_success: Share
    over_refusal: Share


@dataclass(frozen=True)
class ValidationRequests:
    """Prompts of one set and the form in which each is sent."""

    name: str
    prompts: list[Prompt]
    sent: list[AttackedPrompt]

    @classmethod
    def plain(cls, name: str, prompts: list[Prompt]) -> Self:
        return cls(name, prompts, [AttackedPrompt(prompt.text) for prompt in prompts])

    @classmethod
    def disguised(cls, name: str, prompts: list[Prompt], texts: Sequence[Disguise]) -> Self:
        """In these disguises, in turn."""
        return cls(f"{name}, disguised", prompts, disguised([prompt.text for prompt in prompts], texts))

    def ask(self, run: RunContext, engine: CachedEngine, advance: Advance = ignore) -> list[JudgedAnswer]:
        """The model's answers in its present state, which `engine` names."""
        return run.ask(self.prompts, self.name, engine=engine, sent=self.sent, listener=Within(advance))


@dataclass(frozen=True)
class Validator:
    """The run's validation prompts, and what the base model answers to the safe ones, also to those in disguise.

    Harmful and benign prompts are sent plain and in disguises of the kinds that are trained on, in texts that
    neither training nor the evaluation uses.
    """

    run: RunContext
    harmful: tuple[ValidationRequests, ...]
    safe: tuple[ValidationRequests, ...]
    disguised: tuple[ValidationRequests, ...]
    base: tuple[list[JudgedAnswer], ...]

    @classmethod
    def open(cls, run: RunContext, count: int | None = None) -> Self:
        """Ask the base model for at most `count` prompts per set; nothing may be changed in it yet."""
        texts = for_validation(renderable(run.model, run.settings.tune.disguises))
        prompts = {name: run.split(name, "validation", count) for name in ("harmful", "benign", "borderline")}
        plain = {name: ValidationRequests.plain(name, found) for name, found in prompts.items()}
        # Without a kind of disguises there are none to send.
        in_disguise = {
            name: (ValidationRequests.disguised(name, prompts[name], texts),) if texts else ()
            for name in ("harmful", "benign")
        }
        harmful = plain["harmful"], *in_disguise["harmful"]
        safe, disguised = (plain["benign"], plain["borderline"]), in_disguise["benign"]
        asked = *safe, *disguised
        with run.listener.task("base model: safe validation prompts", count_of(asked)) as advance:
            base = tuple(requests.ask(run, run.engine, advance) for requests in asked)
        return cls(run, harmful, safe, disguised, base)

    def attack_success(self, engine: CachedEngine, advance: Advance = ignore) -> Rate:
        """The share of the harmful requests, plain and disguised, that are complied with. Broken answers are not."""
        groups: list[list[Verdict]] = [
            ["complied" if one.verdict == "complied" else "refused" for one in requests.ask(self.run, engine, advance)]
            for requests in self.harmful
        ]
        return mean_rate(groups, "complied", self.run.settings.seed)

    def refused(self, engine: CachedEngine, advance: Advance = ignore) -> dict[str, Rate]:
        """The share of each set of safe prompts, sent plain, that is refused or gets a broken answer."""
        return self._refused(self.safe, engine, advance)

    def refused_disguised(self, engine: CachedEngine, advance: Advance = ignore) -> dict[str, Rate]:
        """The same for the safe requests in disguise."""
        return self._refused(self.disguised, engine, advance)

    def _refused(self, asked: Sequence[ValidationRequests], engine: CachedEngine, advance: Advance) -> dict[str, Rate]:
        return {
            requests.name: share([one.verdict != "complied" for one in requests.ask(self.run, engine, advance)])
            for requests in asked
        }

    def measure(self, change: str) -> Validation:
        """The rates of the model in its present state; `change` names what was done to it, for the cache.

        Over-refusal is the share of the safe requests answered by the base model, plain and disguised, that are no
        longer answered: refused, or broken.
        """
        return self._measure(self.run.engine.under(change))

    def measure_base(self) -> Validation:
        """The rates of the base model."""
        return self._measure(self.run.engine)

    def _measure(self, engine: CachedEngine) -> Validation:
        lost = [
            now.verdict != "complied"
            for requests, before in zip((*self.safe, *self.disguised), self.base, strict=True)
            for now, base in zip(requests.ask(self.run, engine), before, strict=True)
            if base.verdict == "complied"
        ]
        return Validation(self.attack_success(engine).value or 0.0, share(lost).value or 0.0)

    def kl_divergence(self, changed: Callable[[], AbstractContextManager[Any]]) -> float:
        """KL(base || changed) in nats per token: the mean over the base model's answers to safe requests."""
        settings = self.run.settings
        answered = [
            one
            for before in self.base
            for one in before
            if one.verdict == "complied" and one.completion.outcome == "answered"
        ]
        texts = [self.run.model.render_conversation(one.sent.conversation) for one in answered]
        answers = [one.continuation for one in answered]
        moved = in_batches(
            texts,
            settings.batch_size,
            lambda batch: kl_divergence(
                self.run.model,
                [texts[index] for index in batch],
                [answers[index] for index in batch],
                changed,
                settings.evaluate.answer_tokens,
            ),
        )
        known = [value for value in moved if value is not None]
        return sum(known) / len(known) if known else 0.0


def count_of(requests: Sequence[ValidationRequests]) -> int:
    """The number of answers that the requests ask for."""
    return sum(len(one.prompts) for one in requests)
