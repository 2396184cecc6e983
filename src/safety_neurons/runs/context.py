"""What the stages of a run share: the model, the prompts, the folder, and how answers become rows."""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from safety_neurons.calibration.calibration import calibrate
from safety_neurons.calibration.config import Toward
from safety_neurons.core.files import fingerprint
from safety_neurons.core.progress import Listener
from safety_neurons.core.statistics import Row, rate, row
from safety_neurons.evaluation import attacks, judges
from safety_neurons.models.chat import AttackedPrompt, ChatModel
from safety_neurons.models.generate import Sampling
from safety_neurons.models.load import load
from safety_neurons.models.weights import file_sha256
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.prompts import Prompt, PromptSet
from safety_neurons.runs.answers import Answer, Condition, ask
from safety_neurons.runs.folder import RunFolder
from safety_neurons.settings import Settings

# How many answers of each group the report shows.
EXAMPLES = 3


@dataclass(frozen=True)
class StageResult:
    """A stage's part of the results: its rows, and sections of its own ("neurons", "words" ...)."""

    rows: tuple[Row, ...] = ()
    sections: dict[str, Any] | None = None
    examples: tuple[dict[str, Any], ...] = ()


def load_model(settings: Settings) -> ChatModel:
    """The model that the settings name, loaded as they say."""
    return load(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        device_map=settings.device_map,
        quantize=settings.quantize,
        system=settings.system,
        chat_template=settings.chat_template.read_text(encoding="utf-8") if settings.chat_template else None,
        template_options=None if settings.thinking is None else {"enable_thinking": settings.thinking},
        write_matrices=settings.write_matrices,
        allow_partial=settings.allow_partial,
        trust_remote_code=settings.trust_remote_code,
    )


def load_other_model(settings: Settings) -> ChatModel | None:
    """The second checkpoint that the settings name, loaded like the first; None where they name none."""
    name = settings.find.other_model
    return None if name is None else load_model(settings.model_copy(update={"model": name}))


@dataclass(frozen=True)
class RunContext:
    """What the stages share. The model is loaded when a stage first needs it."""

    folder: RunFolder
    settings: Settings
    prompts: dict[str, PromptSet]
    listener: Listener

    @functools.cached_property
    def model(self) -> ChatModel:
        with self.listener.task(f"loading {self.settings.model}", 1) as advance:
            model = load_model(self.settings)
            model.render("Hello")
            covered = model.coverage
            advance(1)
        precision = self.settings.quantize or str(model.model.dtype).removeprefix("torch.")
        self.listener.say(f"{model.name}: {covered}, {precision} on {model.device}")
        for message in covered.unread:
            self.listener.say(message)
        return model

    @functools.cached_property
    def other_model(self) -> ChatModel | None:
        """The second checkpoint that the settings name, if any."""
        name = self.settings.find.other_model
        if name is None:
            return None
        with self.listener.task(f"loading {name}", 1) as advance:
            model = load_other_model(self.settings)
            advance(1)
        return model

    @functools.cached_property
    def neurons(self) -> NeuronSet:
        return NeuronSet.load(self.folder.neurons, self.folder.directions)

    @functools.cached_property
    def answering(self) -> str:
        """The fingerprint of what all answers depend on."""
        settings = self.settings
        precision = (str(self.model.model.dtype), settings.quantize)
        return fingerprint(self.model.identity, precision, settings.system, settings.thinking)

    def chosen(self, name: str, split: str, count: int | None) -> list[Prompt]:
        return list(self.prompts[name].split(split).take(count))

    def ask(
        self,
        condition: Condition,
        name: str,
        prompts: Sequence[Prompt],
        attack: str = "direct",
        sent: Sequence[AttackedPrompt] | None = None,
        tokens: int | None = None,
        sampling: Sampling | None = None,
        listener: Listener | None = None,
    ) -> list[Answer]:
        """Judged answers under a condition; what is sent is the attack's unless it is given.

        Greedy answers unless `sampling` says otherwise.
        """
        return ask(
            self.model,
            self.folder,
            listener or self.listener,
            condition=condition,
            set_name=name,
            prompts=prompts,
            sent=sent or [attacks.template(attack).apply(prompt.text) for prompt in prompts],
            attack=attack,
            judge=judges.rules(self.settings.evaluate.judge),
            answer_tokens=tokens or self.settings.evaluate.answer_tokens,
            batch_size=self.settings.batch_size,
            sampling=sampling,
        )

    def base(self, name: str = "none") -> Condition:
        return Condition("base", name, self.answering)

    def calibrated(self, toward: Toward, subject: str) -> Condition:
        settings = self.settings.calibrate
        knobs = (settings.alpha(toward), settings.but_alphas())
        # What is added follows from the files of this run and, for random neurons, from the seed.
        found = [file_sha256(path) for path in (self.folder.neurons, self.folder.directions)]
        context = fingerprint(self.answering, toward, subject, self.settings.seed, found, knobs)
        return Condition(subject, f"toward {toward}", context)

    def calibrated_model(self, toward: Toward, neurons: NeuronSet) -> AbstractContextManager[ChatModel]:
        """The model calibrated as the settings say."""
        return calibrate(self.model, neurons, self.settings.calibrate, toward=toward)

    def row(
        self, stage: str, condition: Condition, name: str, attack: str, answers: Sequence[Answer], metric: str
    ) -> Row:
        return row(
            rate([answer.verdict for answer in answers], "complied" if metric == "attack success" else "refused"),
            stage=stage,
            subject=condition.subject,
            condition=condition.name,
            prompts=name,
            attack=attack,
            defense="safetuning" if condition.subject == "tuned" else "none",
            judge=self.settings.evaluate.judge,
            metric=metric,
        )

    def examples(
        self, stage: str, condition: Condition, name: str, attack: str, answers: Sequence[Answer]
    ) -> list[dict[str, Any]]:
        """A few answers for the report; what complies with a harmful prompt is left out unless it was asked for."""
        hidden = name == "harmful" and not self.settings.show_responses
        return [
            {
                "stage": stage,
                "subject": condition.subject,
                "condition": condition.name,
                "prompts": name,
                "attack": attack,
                "prompt": answer.prompt.text,
                "response": None if hidden and answer.verdict != "refused" else answer.response,
                "verdict": answer.verdict,
            }
            for answer in answers[:EXAMPLES]
        ]
