"""The results of an audit as types: audit.json, and the section `audit` of results.json."""

from typing import Any, Literal

from pydantic import Field

from safety_neurons.core.fields import Change, Count, Mean, Measured, Number, Positive, Section, Share

Status = Literal["PASS", "WARN", "BLOCK", "UNDERPOWERED", "NOT TESTED"]
VerdictName = Literal["PASS", "WARN", "BLOCK", "UNDERPOWERED"]
Measure = Literal["refusals", "over_refusal", "broken", "exact_match", "nll"]
# The name of the row that is the mean over all attacks.
MEAN = "mean over attacks"


class AuditedModel(Section):
    """One of the two models. `form` says what its name leads to; `stored` is the precision of its files."""

    name: str
    identity: str = ""
    form: str = ""
    stored: str = ""
    dtype: str = ""


class AuditPrompts(Section):
    name: str
    harmful: Count
    safe: dict[str, Count]
    task: Count = 0


class ChangeOfMean(Section):
    """A difference of two rates or of two means, with its 95% interval."""

    value: Number | None
    low: Number | None
    high: Number | None


class AuditRow(Section):
    """One measure of both models on the same requests.

    `difference` is tuned minus base. `n` requests are scored for both; `lost` and `gained` of them moved in the harmful
    and in the other direction (in a mean over attacks, on average). `p_adjusted` is Holm's over the rows of `family`.
    """

    measure: Measure
    name: str
    family: Literal["safety", "costs"]
    base: Mean
    tuned: Mean
    n: Count
    lost: Positive = 0.0
    gained: Positive = 0.0
    p: Share | None = None
    p_adjusted: Share | None = None
    difference: ChangeOfMean
    status: Status
    reason: str = ""
    more_prompts: Count | None = None


class CategoryRow(Section):
    """Refusals of one category of harm, as the mean over attacks; not tested."""

    category: str
    n: Count
    base: Measured
    tuned: Measured
    difference: Change


class Flip(Section):
    """A request on which the verdicts differ. A response is None where it is redacted."""

    attack: str
    prompts: str
    id: str
    category: str = ""
    prompt: str
    before: str
    after: str
    base_response: str | None
    tuned_response: str | None


class Audit(Section):
    """The content of audit.json."""

    schema_version: int = Field(alias="schema")
    command: str = ""
    base: AuditedModel
    tuned: AuditedModel
    verdict: VerdictName
    reasons: list[str]
    remarks: list[str] = []
    thresholds: dict[str, dict[str, Positive | None]]
    prompts: AuditPrompts
    judge: str
    answer_tokens: Count
    seed: Count = 0
    rows: list[AuditRow]
    categories: list[CategoryRow] = []
    kl_divergence: Mean | None = None
    not_run: dict[str, str] = {}
    flips: list[Flip] = []
    settings: dict[str, Any] = {}
