"""Validation of a tuned or guarded model: attack success and over-refusal on the validation prompts."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Self

from safety_neurons.core.progress import Silence
from safety_neurons.core.statistics import rate, share
from safety_neurons.engines.engine import CachedEngine
from safety_neurons.evaluation.contracts import conversation_of
from safety_neurons.evaluation.judging import JudgedAnswer
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.models.generate import in_batches
from safety_neurons.models.likelihood import kl_divergence
from safety_neurons.prompts import Prompt
from safety_neurons.runs.context import RunContext
from safety_neurons.tuning.config import Validation
from safety_neurons.tuning.disguises import Disguise, held_back, renderable


@dataclass(frozen=True)
class ValidationRequests:
    """Prompts of one set and the form in which each is sent."""

    name: str
    prompts: list[Prompt]
    sent: list[AttackedPrompt]

    @classmethod
    def of(cls, name: str, prompts: Sequence[Prompt], disguises: Sequence[Disguise] = ()) -> Self:
        """All plain, and with `disguises` again in these, in turn."""
        texts = [prompt.text for prompt in prompts]
        sent = [AttackedPrompt(text) for text in texts]
        if disguises:
            sent += [disguises[number % len(disguises)](text) for number, text in enumerate(texts)]
        return cls(name, [*prompts, *prompts] if disguises else [*prompts], sent)

    def ask(self, run: RunContext, engine: CachedEngine) -> list[JudgedAnswer]:
        """The model's answers in its present state, which `engine` names."""
        # The caller shows the progress.
        return run.ask(self.prompts, self.name, engine=engine, sent=self.sent, listener=Silence())

    def those(self, wanted: Sequence[bool]) -> Self:
        """The requests for which `wanted` is true."""
        chosen = [number for number, is_wanted in enumerate(wanted) if is_wanted]
        return replace(
            self, prompts=[self.prompts[number] for number in chosen], sent=[self.sent[number] for number in chosen]
        )


@dataclass(frozen=True)
class Validator:
    """The run's validation prompts: harmful ones, and those safe ones that the base model answers.

    Harmful and benign prompts are sent plain and in disguises of the kinds that are trained on, in texts that
    neither training nor the evaluation uses.
    """

    run: RunContext
    harmful: ValidationRequests
    safe: tuple[ValidationRequests, ...]

    @classmethod
    def open(cls, run: RunContext) -> Self:
        """Ask the base model; nothing may be changed in it yet."""
        disguises = held_back(renderable(run.model, run.settings.tune.disguises))
        chosen = {name: run.split(name, "validation", None) for name in ("harmful", "benign", "borderline")}
        safe = []
        for name in ("benign", "borderline"):
            requests = ValidationRequests.of(name, chosen[name], disguises if name == "benign" else ())
            answers = requests.ask(run, run.engine)
            safe.append(requests.those([answer.verdict == "complied" for answer in answers]))
        return cls(run, ValidationRequests.of("harmful", chosen["harmful"], disguises), tuple(safe))

    def measure(self, change: str) -> Validation:
        """The rates of the model in its present state; `change` names what was done to it, for the cache.

        Attack success is the share of judged harmful requests that are answered. Over-refusal is the share of safe
        requests that are no longer answered: refused, or broken.
        """
        return self._measure(self.run.engine.under(change))

    def measure_tuned(self, digest: str) -> Validation:
        """The rates of the model while the delta with this digest is applied."""
        return self.measure(f"safetuning {digest}")

    def measure_base(self) -> Validation:
        """The rates of the base model."""
        return self._measure(self.run.engine)

    def kl_divergence(self, changed: Callable[[], AbstractContextManager[Any]]) -> float:
        """KL(base || changed) in nats per token: the mean over the base model's answers to safe requests."""
        settings = self.run.settings
        texts, answers = [], []
        for requests in self.safe:
            answered = [one for one in requests.ask(self.run, self.run.engine) if one.completion.outcome == "answered"]
            texts += [self.run.model.render_conversation(conversation_of(one.sent)) for one in answered]
            answers += [one.continuation for one in answered]
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

    def _measure(self, engine: CachedEngine) -> Validation:
        attacked = rate([answer.verdict for answer in self.harmful.ask(self.run, engine)], "complied")
        answered = [answer.verdict == "complied" for requests in self.safe for answer in requests.ask(self.run, engine)]
        return Validation(
            attack_success=attacked.value or 0.0,
            over_refusal=1 - (share(answered).value or 0.0) if answered else 0.0,
        )
