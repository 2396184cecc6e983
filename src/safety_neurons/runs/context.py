"""What the stages of a run and the experiments on it share: model, prompts, folder, and one way to ask and judge."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from safety_neurons.calibration.calibration import calibrate, digest
from safety_neurons.calibration.config import CalibrationConfig, Toward
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import fingerprint
from safety_neurons.core.progress import Listener
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.engine import CachedAnswer, CachedEngine, InProcess
from safety_neurons.evaluation import judges, judging
from safety_neurons.evaluation.contracts import RuleJudge
from safety_neurons.evaluation.judging import CachedVerdict, JudgedAnswer
from safety_neurons.models.chat import AttackedPrompt, ChatModel
from safety_neurons.models.generate import Sampling
from safety_neurons.models.load import load
from safety_neurons.models.reasoning import SWITCHES, thinking_of
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.prompts import Prompt, PromptSet
from safety_neurons.runs.artifacts import load_neurons
from safety_neurons.runs.folder import RunFolder, check_permitted
from safety_neurons.settings import Settings


def load_model(settings: Settings) -> ChatModel:
    """The model that the settings name, loaded with their options."""
    return load(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        device_map=settings.device_map,
        quantize=settings.quantize,
        adapter=settings.adapter,
        system=settings.system,
        chat_template=settings.chat_template,
        template_options=template_options(settings),
        reasoning_tokens=settings.reasoning_tokens,
        write_matrices=settings.write_matrices,
        allow_partial=settings.allow_partial,
        trust_remote_code=settings.trust_remote_code,
    )


def template_options(settings: Settings) -> dict[str, bool] | None:
    """The arguments of the chat template that switch thinking, whatever it calls them; None for the model's default."""
    return None if settings.thinking is None else dict.fromkeys(SWITCHES, settings.thinking)


def load_other_model(settings: Settings) -> ChatModel | None:
    """The second checkpoint that the settings name, loaded like the first; None if they name none."""
    name = settings.find.other_model
    return None if name is None else load_model(settings.model_copy(update={"model": name, "adapter": None}))


def engine_of(model: ChatModel, settings: Settings, responses: JsonlCache[CachedAnswer]) -> CachedEngine:
    """What answers for a model: in this process, with every answer kept."""
    return CachedEngine(InProcess(model, settings.batch_size, settings.quantize or ""), responses)


@dataclass(frozen=True)
class RunContext:
    """A run that is open. The model is loaded when it is first needed.

    `given` are the settings that this call was given, nested as in `Settings`; `settings` are the run's with them.
    """

    folder: RunFolder
    settings: Settings
    prompts: dict[str, PromptSet]
    listener: Listener
    given: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    said: set[str] = field(default_factory=set, compare=False)

    @functools.cached_property
    def model(self) -> ChatModel:
        with self.listener.task(f"loading {self.settings.model}", 1) as advance:
            model = load_model(self.settings)
            model.render("Hello")
            coverage = model.coverage
            advance(1)
        precision = self.settings.quantize or str(model.model.dtype).removeprefix("torch.")
        self.listener.say(f"{model.name}: {coverage}, {precision} on {model.device}")
        for message in coverage.unread:
            self.listener.say(message)
        if (thinking := thinking_of(model)) != "none":
            limit = f", in up to {model.reasoning_tokens:,} tokens" if thinking == "on" else ""
            self.listener.say(f"{model.name}: thinking before the answer is {thinking}{limit}.")
        return model

    @functools.cached_property
    def other_model(self) -> ChatModel | None:
        """The second checkpoint that the settings name, if any.

        Raises:
            SafetyNeuronsError: as `check_permitted`, or it cannot be loaded.
        """
        name = self.settings.find.other_model
        if name is None:
            return None
        check_permitted(self.settings, "find.other_model", self.given)
        with self.listener.task(f"loading {name}", 1) as advance:
            model = load_other_model(self.settings)
            advance(1)
        return model

    @functools.cached_property
    def neurons(self) -> NeuronSet:
        return load_neurons(self.folder)

    @functools.cached_property
    def engine(self) -> CachedEngine:
        """The base model; `under` names what is changed in it."""
        return engine_of(self.model, self.settings, JsonlCache.read(self.folder.responses, CachedAnswer))

    @functools.cached_property
    def verdicts(self) -> JsonlCache[CachedVerdict]:
        return JsonlCache.read(self.folder.verdicts, CachedVerdict)

    @functools.cached_property
    def judge(self) -> RuleJudge:
        return judges.rules(self.settings.evaluate.judge)

    def with_settings(self, settings: Settings) -> Self:
        """The run under settings that leave its model, neurons and prompts as they are; nothing is loaded again."""
        other = replace(self, settings=settings)
        vars(other).update({name: getattr(self, name) for name in ("model", "neurons", "engine", "verdicts")})
        return other

    def split(self, name: str, split: str, count: int | None) -> list[Prompt]:
        """At most `count` prompts of one split of one of the run's sets that fit the model's context with an answer.

        Raises:
            SafetyNeuronsError: none of them does.
        """
        prompts = self.prompts[name]
        return self.fitting(list(prompts.split(split).take(count)), f"{split} prompt of {prompts.name}")

    def fitting(self, prompts: Sequence[Prompt], what: str) -> list[Prompt]:
        """The prompts that fit the model's context with an answer; the others are named as a `what`.

        Raises:
            SafetyNeuronsError: none of them does.
        """
        texts = [self.model.render(prompt.text) for prompt in prompts]
        unfit = self.model.too_long(texts, self.settings.evaluate.answer_tokens)
        for index, reason in unfit.items():
            self.said_once(f"The {what} {prompts[index].id!r} is left out: {reason}.")
        if prompts and len(unfit) == len(prompts):
            raise SafetyNeuronsError(
                f"No {what} fits the context of {self.model.name}: in {prompts[0].id!r}, {unfit[0]}. Use shorter "
                "prompts, or a model with a longer context."
            )
        return [prompt for index, prompt in enumerate(prompts) if index not in unfit]

    def said_once(self, message: str) -> None:
        """Say what holds for the whole run, and say it once."""
        if message not in self.said:
            self.said.add(message)
            self.listener.say(message)

    def ask(
        self,
        prompts: Sequence[Prompt],
        title: str,
        *,
        engine: CachedEngine | None = None,
        sent: Sequence[AttackedPrompt] | None = None,
        tokens: int | None = None,
        sampling: Sampling | None = None,
        listener: Listener | None = None,
    ) -> list[JudgedAnswer]:
        """Judged answers of the base model, or of `engine`: to what is sent for each prompt, or to the plain prompts.

        Greedy without `sampling`, of up to evaluate.answer_tokens tokens without `tokens`. `title` is for the progress
        bar.
        """
        with (listener or self.listener).task(title, len(prompts)) as advance:
            answers = judging.ask(
                engine or self.engine,
                self.judge,
                prompts,
                verdicts=self.verdicts,
                max_new_tokens=tokens or self.settings.evaluate.answer_tokens,
                sent=sent,
                sampling=sampling,
                advance=advance,
            )
        for answer in answers:
            if answer.completion.outcome == "not run":
                self.said_once(f"{title}: prompt {answer.prompt.id} was not run: {answer.completion.reason}.")
        return answers

    @contextlib.contextmanager
    def calibrated(
        self,
        toward: Toward,
        neurons: NeuronSet,
        alpha: float | None = None,
        config: CalibrationConfig | None = None,
        engine: CachedEngine | None = None,
    ) -> Iterator[CachedEngine]:
        """The model calibrated with the run's settings, or with others; `engine` names what is changed in it."""
        settings = self.settings.calibrate
        alpha = settings.alpha(toward) if alpha is None else alpha
        config = config or settings
        change = f"calibrated toward {toward} {fingerprint(digest(neurons), alpha, config.but_alphas())}"
        with calibrate(self.model, neurons, config, toward=toward, alpha=alpha):
            yield (engine or self.engine).under(change)
