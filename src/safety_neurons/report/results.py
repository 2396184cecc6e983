"""The results of a run as types: what the stages and the experiments write, and the report reads.

A results.json may come from others. It is validated when it is read; sections keep fields that they do not know.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import AliasChoices, Field, ValidationError, model_validator

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.fields import (
    Count,
    Layer,
    Measured,
    Number,
    Positive,
    RateFields,
    Section,
    Share,
)
from safety_neurons.core.files import read_json
from safety_neurons.core.statistics import Verdict
from safety_neurons.core.visible import visible
from safety_neurons.evaluation.measured import MathProblems, Ordinary, Preferences, Tasks, Timing
from safety_neurons.report.audit_results import Audit
from safety_neurons.report.experiment_results import (
    Adaptive,
    AnswerLengths,
    AutoTuning,
    DoseResponse,
    GuardTest,
    LeftOut,
    PairedChange,
    Search,
)
from safety_neurons.report.record import RunRecord
from safety_neurons.report.scale_curve import ScaleCurve
from safety_neurons.report.seeds_results import SeedsResults

SCHEMA = 3
AGAIN = "Run all stages again: answers are cached."
# Levels of lists and objects; results have about a dozen.
_DEEPEST = 50
# The defenses that stand for the base and for the tuned model.
BASE, TUNED = "none", "safetuning"


class CalibrationRow(RateFields):
    stage: str
    subject: str
    condition: str
    prompts: str
    judge: str
    metric: str


class ExampleAnswer(Section):
    """An answer; `response` is None where it is redacted."""

    stage: str
    subject: str
    condition: str
    prompts: str
    attack: str
    prompt: str
    response: str | None
    reasoning: str = ""
    verdict: str


class LayerNeurons(Section):
    layer: Layer
    rejection: Count
    conformity: Count
    width: Count | None = None


class HookPointNeurons(Section):
    layer: Layer
    hook_point: Layer = Field(validation_alias=AliasChoices("hook_point", "site"))
    width: Count
    rejection: list[Count]
    conformity: list[Count]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if max((*self.rejection, *self.conformity), default=-1) >= self.width:
            raise ValueError(f"a neuron has an index of {self.width} or above, the number of neurons")
        return self


class FoundNeurons(Section):
    total: Count
    rejection: Count
    conformity: Count
    share_of_neurons: Share
    share_of_parameters: Share
    score: str
    formula: str = ""
    per_layer: list[LayerNeurons] = []
    indices: list[HookPointNeurons] = []


class RandomNeurons(Section):
    indices: list[HookPointNeurons] = []


class SingleNeuron(Section):
    layer: Layer
    side: str
    hook_point: Layer = Field(validation_alias=AliasChoices("hook_point", "site"))
    neuron: Count
    promoted: list[str]
    suppressed: list[str]


class LayerSideWords(Section):
    layer: Layer
    side: str
    words: list[str]
    suppressed: list[str] = []
    neurons: list[SingleNeuron] = []


class LayerShare(Section):
    layer: Layer
    weighting: str
    projection: Number


class _LexiconScore(Section):
    weighting: str
    side: str
    lexicon: str


class LayerScore(_LexiconScore):
    layer: Layer
    neurons: Count
    together: Share
    random_low: Share
    random_high: Share
    p_adjusted: Share
    single: Share
    single_above: Count


class MeanScore(_LexiconScore):
    layers: Count
    significant: Count
    together: Share
    random: Share
    random_low: Share
    random_high: Share
    p: Share
    single: Share
    random_single: Share
    lens: Share | None


class ResidualScore(_LexiconScore):
    layer: Layer
    auroc: Share


class FirstReadable(Section):
    side: str
    weighting: str
    layer: Layer | None


class Vocabulary(Section):
    random_sets: Count
    scores: list[LayerScore] = []
    overall: list[MeanScore] = []
    lens: list[ResidualScore] = []
    first_readable: list[FirstReadable] = []


class CloudPrompt(Section):
    id: str
    category: str = ""


class CloudPoints(Section):
    x: list[Number]
    y: list[Number]

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if not self.x or len(self.x) != len(self.y):
            raise ValueError("a point has an x and a y, and there is at least one")
        return self


class CloudLayer(Section):
    """A layer, or all of them together where `layer` is None."""

    layer: Layer | None
    neurons: Count
    auroc: Measured
    auroc_random: Measured
    harmful_half: dict[str, Share]
    explained: tuple[Share, Share] | None
    points: dict[str, CloudPoints] | None

    @model_validator(mode="after")
    def _both(self) -> Self:
        points = self.points or {}
        for side in ("harmful", "benign") if self.points is not None else ():
            before, after = (points.get(name) for name in (side, f"{side}_calibrated"))
            if before is None or after is None or len(before.x) != len(after.x):
                raise ValueError(f"each {side} prompt has a point before and one after calibration")
        return self


class Clouds(Section):
    alpha: dict[str, Number]
    prompts: dict[str, list[CloudPrompt]]
    layers: list[CloudLayer]


class LossStep(Section):
    step: Count
    loss: Number | None


class TrainingResults(Section):
    loss: list[LossStep] = []
    scale_curve: ScaleCurve | None = None
    corpus: dict[str, Count] = {}
    trainable_parameters: Count
    share_of_parameters: Share | None = None
    unchanged_outside: bool | None = None
    seconds: Positive | None = None


class CellVerdicts(RateFields):
    """One judge's verdicts in a cell, prompt by prompt; None where nothing was asked."""

    verdicts: list[Verdict | None]
    corrected: Measured | None = None
    against_none: PairedChange | None = None


class CellResult(Section):
    model: str
    defense: str
    attack: str
    prompts: str
    reason: str = ""
    prompt_ids: list[str]
    not_run: dict[str, str] = {}
    blocked: Count = 0
    blocked_by: dict[str, Count] = {}
    reasoned: Count = 0
    unfinished: Count = 0
    cut_off: Count = 0
    judges: dict[str, CellVerdicts]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if any(len(judged.verdicts) != len(self.prompt_ids) for judged in self.judges.values()):
            raise ValueError("a judge has not one verdict for each prompt")
        return self


class DefenseSummary(Section):
    model: str
    defense: str
    judge: str
    attacks: list[str] = []
    attack_success: Measured | None
    corrected: Measured | None = None
    against_none: PairedChange | None = None
    over_refusal: dict[str, Measured] = {}


class EvaluationPrompts(Section):
    name: str
    harmful: Count
    safe: dict[str, Count]
    remarks: dict[str, str] = {}


class ErrorCounts(Section):
    source: str = ""
    counts: dict[str, dict[str, Count]] = {}


class Member(Section):
    source: str = ""


class _OfDefense(Section):
    model: str
    defense: str


class DefenseTime(Timing, _OfDefense):
    pass


class OrdinaryAnswers(Ordinary, _OfDefense):
    pass


class DefenseTasks(Tasks, _OfDefense):
    pass


class DefenseMath(MathProblems, _OfDefense):
    pass


class DefensePreferences(Preferences, _OfDefense):
    pass


class Evaluation(Section):
    models: list[str]
    attacks: dict[str, Member]
    defenses: dict[str, Member]
    judges: dict[str, Member]
    prompts: EvaluationPrompts
    answer_tokens: Count
    judge_errors: dict[str, ErrorCounts] = {}
    guard: str | None = None
    """Digest of the guard that was evaluated."""
    cells: list[CellResult]
    summary: list[DefenseSummary]
    overhead: list[DefenseTime] = []
    utility: list[OrdinaryAnswers] = []
    tasks: list[DefenseTasks] = []
    gsm8k: list[DefenseMath] = []
    preferences: list[DefensePreferences] = []


class RunResults(Section):
    """The content of results.json; a section is None until its stage or experiment has run."""

    schema_version: int = Field(alias="schema")
    run: RunRecord
    rows: list[CalibrationRow]
    examples: list[ExampleAnswer] = []
    neurons: FoundNeurons | None = None
    words: list[LayerSideWords] = []
    write_share: list[LayerShare] = []
    vocabulary: Vocabulary | None = None
    control: RandomNeurons | None = None
    clouds: Clouds | None = None
    training: TrainingResults | None = None
    evaluation: Evaluation | None = None
    dose_response: DoseResponse | None = None
    search: Search | None = None
    guard: GuardTest | None = None
    adaptive: Adaptive | None = None
    lengths: AnswerLengths | None = None
    auto: AutoTuning | None = None
    seeds: SeedsResults | None = None
    left_out: LeftOut | None = None
    audit: Audit | None = None

    @property
    def shows_responses(self) -> bool:
        """Whether examples and flips may hold answers that comply with harmful requests: files of them are private."""
        settings = [self.run.settings, *([] if self.audit is None else [self.audit.settings])]
        return any(one.get("show_responses") for one in settings)

    @classmethod
    def of(cls, content: Any, source: str = "These results", again: str = AGAIN) -> "RunResults":
        """Validate the content of a results.json.

        Args:
            source: where it is from; begins the error message.
            again: how to make it again; ends the error message.

        Raises:
            SafetyNeuronsError: it is of another version, incomplete or damaged.
        """
        found = content.get("schema") if isinstance(content, Mapping) else type(content).__name__
        if found == 2:
            raise SafetyNeuronsError(
                f"{source} were written by version 0.1, and this version cannot read them: repeat the run in a new "
                "folder."
            )
        if found != SCHEMA:
            raise SafetyNeuronsError(
                f"{source} have schema {visible(repr(found), 40)}; this version reads schema {SCHEMA}. {again}"
            )
        if _too_deep(content):
            raise SafetyNeuronsError(f"{source} are damaged: they are nested too deeply. {again}")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = visible(".".join(map(str, problem["loc"])), 200)
            said = visible(problem["msg"], 300)
            raise SafetyNeuronsError(f"{source} are damaged at {where}: {said}. {again}") from error

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return self.model_dump(by_alias=True, exclude_unset=True)


def read_results(path: Path) -> RunResults:
    """Read a results.json.

    Raises:
        SafetyNeuronsError: the file is missing, unreadable, damaged or of another version.
    """
    return read_content(path)[0]


def read_content(path: Path, again: str | None = None) -> tuple[RunResults, dict[str, Any]]:
    """Read a results.json, also as it is in the file; errors as `read_results`, which `again` ends."""
    again = again or f"Make it again: safety-neurons run --out {shlex.quote(str(path.parent))}"
    content = read_json(path, again)
    return RunResults.of(content, f"The results in {path}", again), content


def _too_deep(value: Any) -> bool:
    """Whether lists and objects are nested beyond all results, and near to what Python's recursion can follow."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True
