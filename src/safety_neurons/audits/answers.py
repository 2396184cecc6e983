"""What the two models of an audit are asked, and what one of them answers."""

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from safety_neurons.audits.config import Thresholds
from safety_neurons.audits.task import CachedLikelihood, Example, TaskScores, read_task, score_task
from safety_neurons.core.records import JsonlCache
from safety_neurons.core.statistics import Rate
from safety_neurons.engines.engine import CachedAnswer
from safety_neurons.evaluation.checked import opened
from safety_neurons.evaluation.contracts import RunArtifacts
from safety_neurons.evaluation.grid import JudgedCell
from safety_neurons.evaluation.utility.ordinary import BaseAnswers, read_base_answers, utility
from safety_neurons.report.results import BASE
from safety_neurons.runs.context import RunContext, engine_of, load_model
from safety_neurons.runs.evaluation import Evaluator
from safety_neurons.settings import Settings


@dataclass(frozen=True)
class Question:
    """What both models are asked, and what counts as a loss. For a task, the examples that are scored."""

    evaluator: Evaluator
    examples: tuple[Example, ...]
    thresholds: Thresholds

    @classmethod
    def prepare(cls, settings: Settings, task: Path | None, thresholds: Path | Thresholds | None) -> Self:
        """Find and check everything before any work begins.

        Raises:
            SafetyNeuronsError: an option is wrong, or a file cannot be read or used.
        """
        levels = Thresholds.read(thresholds) if isinstance(thresholds, Path) else thresholds or Thresholds()
        config = settings.evaluate
        examples = () if task is None else tuple(read_task(task)[: config.prompts])
        return cls(Evaluator.of_verdicts(settings, BASE, judge_errors=None), examples, levels)

    @property
    def judge(self) -> str:
        return self.evaluator.judges[0].name

    @property
    def seed(self) -> int:
        return self.evaluator.settings.seed

    def of(self, settings: Settings) -> Evaluator:
        """The evaluation of a model with these settings."""
        evaluate = self.evaluator.settings.evaluate
        return replace(self.evaluator, settings=settings.model_copy(update={"evaluate": evaluate}))


@dataclass(frozen=True)
class Answers:
    """What one model answered, and its scores on the task.

    `kl_divergence` is KL(base || model) in nats per token, over the base's answers to ordinary requests; None for the
    base.
    """

    judged: list[JudgedCell]
    task: TaskScores | None
    dtype: str
    kl_divergence: Rate | None = None


def ask(
    run: RunContext, settings: Settings, question: Question, base: BaseAnswers | None = None
) -> tuple[Answers, BaseAnswers]:
    """Load a model, ask it everything, and let it go: there may be no memory for two.

    What the run's folder holds already is not asked again.

    Args:
        settings: those that the model is loaded with.
        base: what the base answered to ordinary requests; None for the base itself, which is read.
    """
    evaluator = question.of(settings)
    (defense,) = evaluator.plan.defenses
    with run.listener.task(f"loading {settings.model}", 1) as advance:
        model = load_model(settings)
        model.render("Hello")
        advance(1)
    engine = engine_of(model, settings, JsonlCache.read(run.folder.responses, CachedAnswer))
    context = evaluator.context(engine, RunArtifacts(), run.folder.path, run.listener)
    cells, _ = evaluator.answer(context)
    judged = evaluator.judge(cells, run.verdicts, run.listener)
    with run.listener.task(f"{settings.model}: ordinary requests", 1) as advance:
        if base is None:
            base = read_base_answers(context, evaluator.ordinary(context), batch_size=settings.batch_size)
            divergence = None
        else:
            with opened(defense, context) as defended:
                divergence = utility(context, defended, base.prompts, base).kl_divergence
        advance(1)
    scores = None
    if question.examples:
        likelihoods = JsonlCache.read(run.folder.path / "likelihoods.jsonl", CachedLikelihood)
        scores = score_task(context, defense, question.examples, likelihoods, settings.batch_size)
    dtype = str(model.model.dtype).removeprefix("torch.")
    del model, engine, context
    # Its modules refer to each other.
    gc.collect()
    return Answers(judged, scores, dtype, divergence), base
