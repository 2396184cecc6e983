"""The results of a run as types: what the stages and the experiments write, and the report reads.

A results.json may come from others. It is validated when it is read; sections keep fields that they do not know.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.statistics import Rate
from safety_neurons.core.visible import visible

SCHEMA = 3
HARMFUL = "harmful"
# The defenses that stand for the base and for the tuned model.
BASE, TUNED = "none", "safetuning"


class Section(BaseModel):
    """A part of the results."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, defer_build=True)


def _counted(value: Any) -> Any:
    return {"n": 0, "unscored": 0} | value if isinstance(value, dict) else value


# A rate or a mean; where all prompts of a row were counted, their number stands in the row and not in the rate.
Measured = Annotated[Rate, BeforeValidator(_counted)]


class RateFields(Section):
    """A rate among the other fields of a row."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int

    @property
    def rate(self) -> Rate:
        return Rate(self.value, self.low, self.high, self.n, self.unscored)


class StageRecord(Section):
    seconds: float | None = None
    finished: str | None = None


class RunRecord(Section):
    model: dict[str, Any] | None = None
    coverage: dict[str, Any] | None = None
    settings: dict[str, Any] = {}
    seed: int | None = None
    versions: dict[str, str] = {}
    prompts: dict[str, dict[str, Any]] = {}
    command: str = ""
    started: str = ""
    stages: dict[str, StageRecord] = {}


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
    layer: int
    rejection: int
    conformity: int
    width: int | None = None


class HookPointNeurons(Section):
    layer: int
    hook_point: int = Field(validation_alias=AliasChoices("hook_point", "site"))
    width: int
    rejection: list[int]
    conformity: list[int]


class FoundNeurons(Section):
    total: int
    rejection: int
    conformity: int
    share_of_neurons: float
    share_of_parameters: float
    score: str
    formula: str = ""
    per_layer: list[LayerNeurons] = []
    indices: list[HookPointNeurons] = []


class RandomNeurons(Section):
    indices: list[HookPointNeurons] = []


class SingleNeuron(Section):
    layer: int
    side: str
    hook_point: int = Field(validation_alias=AliasChoices("hook_point", "site"))
    neuron: int
    promoted: list[str]
    suppressed: list[str]


class LayerSideWords(Section):
    layer: int
    side: str
    words: list[str]
    suppressed: list[str] = []
    neurons: list[SingleNeuron] = []


class LayerShare(Section):
    layer: int
    weighting: str
    projection: float


class _LexiconScore(Section):
    weighting: str
    side: str
    lexicon: str


class LayerScore(_LexiconScore):
    layer: int
    neurons: int
    together: float
    random_low: float
    random_high: float
    p_adjusted: float
    single: float
    single_above: int


class MeanScore(_LexiconScore):
    layers: int
    significant: int
    together: float
    random: float
    random_low: float
    random_high: float
    p: float
    single: float
    random_single: float
    lens: float | None


class ResidualScore(_LexiconScore):
    layer: int
    auroc: float


class FirstReadable(Section):
    side: str
    weighting: str
    layer: int | None


class Vocabulary(Section):
    random_sets: int
    scores: list[LayerScore] = []
    overall: list[MeanScore] = []
    lens: list[ResidualScore] = []
    first_readable: list[FirstReadable] = []


class CloudPrompt(Section):
    id: str
    category: str = ""


class CloudPoints(Section):
    x: list[float]
    y: list[float]


class CloudLayer(Section):
    """A layer, or all of them together where `layer` is None."""

    layer: int | None
    neurons: int
    auroc: Measured
    auroc_random: Measured
    harmful_half: dict[str, float]
    explained: tuple[float, float] | None
    points: dict[str, CloudPoints] | None


class Clouds(Section):
    alpha: dict[str, float]
    prompts: dict[str, list[CloudPrompt]]
    layers: list[CloudLayer]


class LossStep(Section):
    step: int
    loss: float | None


class ValidationRates(Section):
    attack_success: float
    over_refusal: float


class StepRates(ValidationRates):
    step: int


class TrainingResults(Section):
    loss: list[LossStep] = []
    validation: list[StepRates] = []
    corpus: dict[str, int] = {}
    trainable_parameters: int
    share_of_parameters: float | None = None
    unchanged_outside: bool | None = None
    seconds: float | None = None


class Answered(Section):
    """What was answered to `n` prompts, as shares of all of them."""

    n: int
    refused: Measured
    answered: Measured
    broken: Measured
    kl_divergence: Measured


class DoseRow(Answered):
    alpha: float
    alpha_used: float
    subject: str
    prompts: str


class DoseResponse(Section):
    rows: list[DoseRow]
    on: str
    neurons: int
    equal_dose_factor: float
    nll_limit: float


class SearchLimits(Section):
    target: float
    broken: float
    kl_divergence: float | None


class InterventionTrial(Section):
    percent: float
    alpha: float
    prompt_positions: int
    generated_tokens: int
    neurons: int
    share_of_neurons: float
    share_of_parameters: float
    moved: float
    broken: float
    side_kl_divergence: float | None

    def keeps(self, limits: SearchLimits) -> bool:
        """Whether it is within the limits; what was not measured, or has no limit, is."""
        pairs = ((self.broken, limits.broken), (self.side_kl_divergence, limits.kl_divergence))
        return all(value is None or limit is None or value <= limit for value, limit in pairs)


class TestedIntervention(Section):
    subject: str
    moving: Answered
    staying: Answered | None
    moved: Measured
    alpha: float | None = None
    p_value: float | None = None


class InterventionTest(Section):
    on: str
    moving: str
    staying: str
    rows: list[TestedIntervention]


class SearchDirection(Section):
    toward: str
    chosen: InterventionTrial
    trials: list[InterventionTrial]
    tests: list[InterventionTest]

    @property
    def verb(self) -> str:
        """What should happen to the prompts."""
        return "answered" if self.toward == "conformity" else "refused"

    @property
    def moving(self) -> str:
        """The prompts to which it should happen."""
        return self.tests[0].moving if self.tests else HARMFUL if self.toward == "conformity" else "benign"


class Search(Section):
    score: str
    trials: int
    limits: SearchLimits
    directions: list[SearchDirection]


class DetectorRow(Section):
    detector: str
    on: str
    harmful: int
    benign: int
    auroc: Measured
    tpr_at_1: Measured = Field(alias="tpr_at_0.01")
    tpr_at_5: Measured = Field(alias="tpr_at_0.05")
    flagged_harmful: Measured | None = None
    flagged_benign: Measured | None = None


class GuardAlpha(ValidationRates):
    alpha: float


class GuardAnswers(Section):
    refused: Measured
    answered: Measured
    unscored: int


class GuardedRow(Section):
    on: str
    prompts: str
    n: int
    base: GuardAnswers
    guarded: GuardAnswers


class GuardTest(Section):
    digest: str | None = None
    layer: int
    deciding_neurons: int
    false_positive_rate: float
    fitted_on: dict[str, int]
    alpha: float
    doses: list[GuardAlpha]
    detectors: list[DetectorRow]
    rows: list[GuardedRow]


class AdaptiveRow(Answered):
    model: str
    calibrated: str
    prompts: str


class Adaptive(Section):
    rows: list[AdaptiveRow]
    on: str


class TuningRates(ValidationRates):
    kl_divergence: float


class TuningTrial(Section):
    number: int
    settings: dict[str, int | float | str]
    objectives: TuningRates


class AutoTuning(Section):
    base: ValidationRates
    trials: list[TuningTrial]
    left_out: int
    front: list[int]
    max_over_refusal: float | None
    chosen: int
    tuned: TuningRates


class PairedChange(Section):
    value: float | None
    low: float | None
    high: float | None
    p: float | None = None
    n: int | None = None


class CellVerdicts(RateFields):
    """One judge's verdicts in a cell, prompt by prompt; None where nothing was asked."""

    verdicts: list[str | None]
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
    blocked: int = 0
    blocked_by: dict[str, int] = {}
    reasoned: int = 0
    unfinished: int = 0
    cut_off: int = 0
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
    harmful: int
    safe: dict[str, int]
    remarks: dict[str, str] = {}


class ErrorCounts(Section):
    source: str = ""
    counts: dict[str, dict[str, int]] = {}


class Member(Section):
    source: str = ""


class _OfDefense(Section):
    model: str
    defense: str


class DefenseTime(_OfDefense):
    ratio: float
    low: float | None = None
    high: float | None = None


class OrdinaryAnswers(_OfDefense):
    words: Measured
    looping: Measured
    blocked: Measured
    kl_divergence: Measured | None
    perplexity: Measured | None


class TaskMetric(Section):
    value: float
    stderr: float | None


class TaskMetrics(Section):
    metrics: dict[str, TaskMetric]


class DefenseTasks(_OfDefense):
    results: dict[str, TaskMetrics]


class PreferenceCounts(Section):
    rate: Measured
    wins: int
    ties: int
    losses: int
    swayed: int
    unscored: int


class PreferenceGrades(Section):
    mean: Measured


class DefensePreferences(_OfDefense):
    win_rate: PreferenceCounts
    grades: PreferenceGrades


class Evaluation(Section):
    models: list[str]
    attacks: dict[str, Member]
    defenses: dict[str, Member]
    judges: dict[str, Member]
    prompts: EvaluationPrompts
    answer_tokens: int
    judge_errors: dict[str, ErrorCounts] = {}
    cells: list[CellResult]
    summary: list[DefenseSummary]
    overhead: list[DefenseTime] = []
    utility: list[OrdinaryAnswers] = []
    tasks: list[DefenseTasks] = []
    preferences: list[DefensePreferences] = []
    guard: str | None = None


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
    auto: AutoTuning | None = None

    @property
    def shows_responses(self) -> bool:
        """Whether the examples may hold answers that comply with harmful requests: files of them are private."""
        return bool(self.run.settings.get("show_responses"))

    @classmethod
    def of(cls, content: Any) -> "RunResults":
        """Validate the content of a results.json.

        Raises:
            SafetyNeuronsError: it is of another version, incomplete or damaged.
        """
        found = content.get("schema") if isinstance(content, Mapping) else type(content).__name__
        if found == 2:
            raise SafetyNeuronsError(
                "These results were written by version 0.1, and this version cannot read them: repeat the run in a new "
                "folder."
            )
        again = "Delete results.json and run the report stage again."
        if found != SCHEMA:
            raise SafetyNeuronsError(
                f"The results have schema {visible(repr(found), 40)}; this version reads schema {SCHEMA}. {again}"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problem = error.errors()[0]
            where = visible(".".join(map(str, problem["loc"])), 200)
            raise SafetyNeuronsError(f"The results are damaged at {where}: {problem['msg']}. {again}") from error

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return self.model_dump(by_alias=True, exclude_unset=True)
