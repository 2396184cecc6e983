"""The results of the experiments on a run as types: their sections of results.json."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from safety_neurons.core.fields import Change, Count, Layer, Mean, Measured, Number, Percent, Section, Share
from safety_neurons.report.record import HARMFUL


class ValidationRates(Section):
    attack_success: Share
    over_refusal: Share


class Answered(Section):
    """What was answered to `n` prompts, as shares of all of them."""

    n: Count
    refused: Measured
    answered: Measured
    broken: Measured
    kl_divergence: Mean


class DoseRow(Answered):
    alpha: Number
    alpha_used: Number
    subject: str
    prompts: str


class DoseResponse(Section):
    rows: list[DoseRow]
    on: str
    neurons: Count
    equal_dose_factor: Number
    nll_limit: Number


class SearchLimits(Section):
    target: Share
    broken: Share
    kl_divergence: Number | None


class InterventionTrial(Section):
    percent: Percent
    alpha: Number
    prompt_positions: Count
    generated_tokens: Count
    neurons: Count
    share_of_neurons: Share
    share_of_parameters: Share
    # Of all prompts: answered toward conformity, refused toward rejection.
    moved: Share
    broken: Share
    side_kl_divergence: Number | None

    def keeps(self, limits: SearchLimits) -> bool:
        """Whether it is within the limits; what was not measured, or has no limit, is."""
        pairs = ((self.broken, limits.broken), (self.side_kl_divergence, limits.kl_divergence))
        return all(value is None or limit is None or value <= limit for value, limit in pairs)


class TestedIntervention(Section):
    subject: str
    moving: Answered
    staying: Answered | None
    moved: Measured
    alpha: Number | None = None
    p_value: Share | None = None
    # On the benign validation prompts, of random neurons whose alpha was chosen for it.
    kl_divergence: Number | None = None
    kl_reached: bool = True


class InterventionTest(Section):
    on: str
    moving: str
    staying: str
    rows: list[TestedIntervention]


class SearchDirection(Section):
    toward: str
    chosen: InterventionTrial
    trials: list[InterventionTrial]
    # Of the chosen intervention, on the benign validation prompts.
    kl_divergence: Number | None = None
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
    trials: Count
    limits: SearchLimits
    directions: list[SearchDirection]


class DetectorRow(Section):
    detector: str
    on: str
    harmful: Count
    benign: Count
    auroc: Measured
    tpr_at_1: Measured = Field(alias="tpr_at_0.01")
    tpr_at_5: Measured = Field(alias="tpr_at_0.05")
    flagged_harmful: Measured | None = None
    flagged_benign: Measured | None = None


class GuardAlpha(ValidationRates):
    alpha: Number


class GuardAnswers(Section):
    refused: Measured
    answered: Measured
    unscored: Count


class GuardedRow(Section):
    on: str
    prompts: str
    n: Count
    base: GuardAnswers
    guarded: GuardAnswers


class GuardTest(Section):
    digest: str | None = None
    layer: Layer
    deciding_neurons: Count
    false_positive_rate: Share
    fitted_on: dict[str, Count]
    alpha: Number
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
    kl_divergence: Number


def _searched(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a trial, with those that a table shows."""
    for name in ("find.percent", "tune.learning_rate", "tune.kl", "tune.refusals", "tune.contrast", "tune.benign"):
        if type(settings.get(name)) not in (int, float):
            raise ValueError(f"{name} is not a number")
    if not isinstance(settings.get("find.score"), str):
        raise ValueError("find.score is not a name")
    return settings


class TuningTrial(Section):
    number: Count
    settings: Annotated[dict[str, Count | Number | str], AfterValidator(_searched)]
    objectives: TuningRates


class AutoTuning(Section):
    base: ValidationRates
    trials: list[TuningTrial]
    left_out: Count
    front: list[Count]
    max_over_refusal: Share
    chosen: Count
    tuned: TuningRates

    @model_validator(mode="after")
    def _among_them(self) -> Self:
        if self.chosen not in {trial.number for trial in self.trials}:
            raise ValueError(f"the chosen trial {self.chosen} is not among the trials")
        return self


class PairedChange(Change):
    p: Share | None = None
    n: Count | None = None


class LeftOutRow(Section):
    """Attack success in one kind of disguise, or on average over all; `difference` is without the kind minus with all.

    `requests` is the number of different requests.
    """

    kind: str
    requests: Count
    base: Measured
    all_kinds: Measured
    without: Measured
    difference: PairedChange


class LeftOut(Section):
    rows: list[LeftOutRow]
    mean: LeftOutRow
    on: str
    judge: str


class LengthVerdicts(Section):
    """The verdicts of a cell on answers of this many tokens, and how many turn until the longest answer."""

    tokens: Count
    rate: Measured
    to_refused: Measured | None = None
    to_complied: Measured | None = None


class LengthCell(Section):
    defense: str
    attack: str
    prompts: str
    metric: str
    reason: str = ""
    lengths: list[LengthVerdicts]


class LengthSummary(Section):
    """The mean over the cells of a defense and a prompt set, and that mean minus the one of the longest answers."""

    defense: str
    prompts: str
    tokens: Count
    cells: Count
    rate: Measured
    difference: PairedChange | None = None


class AnswerLengths(Section):
    tokens: list[Count]
    requests: Count
    on: str
    judge: str
    cells: list[LengthCell]
    summary: list[LengthSummary]
