"""The rows of a run's results: which of them belong together, and what they measure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from safety_neurons.report.text import percent

ATTACK_SUCCESS = "attack success"
REFUSED = "refused"
# The row that sums the attacks up; its interval is a bootstrap over prompts.
MEAN = "mean"


@dataclass(frozen=True)
class Rate:
    """A share of judged answers. `n` answers were judged; `unscored` more could not be."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int


@dataclass(frozen=True)
class Arm:
    """One way to run the model: who, when, behind which defense."""

    subject: str
    condition: str
    defense: str

    @property
    def tuned(self) -> bool:
        """The arm that the page is about; the other arms are what it is compared with."""
        return self == Arm("tuned", "after", "safetuning")

    @property
    def base(self) -> bool:
        return self == Arm("base", "before", "none")

    @property
    def label(self) -> str:
        if self.tuned or self.base:
            return self.condition
        return ", ".join(dict.fromkeys((self.condition, self.subject, self.defense)))


@dataclass(frozen=True)
class Change:
    """The same rate before and after tuning; either may not be measured yet."""

    before: Rate | None
    after: Rate | None

    @property
    def measured(self) -> bool:
        return self.value_before is not None and self.value_after is not None

    @property
    def value_before(self) -> float | None:
        return self.before.value if self.before else None

    @property
    def value_after(self) -> float | None:
        return self.after.value if self.after else None


def rate(row: dict[str, Any]) -> Rate:
    return Rate(row.get("value"), row.get("low"), row.get("high"), row.get("n") or 0, row.get("unscored") or 0)


def select(rows: Iterable[dict[str, Any]], **wanted: str) -> list[dict[str, Any]]:
    """The rows whose fields have these values, in their order."""
    return [row for row in rows if all(row.get(field) == value for field, value in wanted.items())]


def main_judge(rows: list[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    """A stage's rows by its first judge: figures and sentences never mix two judges."""
    staged = select(rows, stage=stage)
    return [row for row in staged if row.get("judge") == staged[0].get("judge")]


def arm(row: dict[str, Any]) -> Arm:
    return Arm(*(str(row.get(field)) for field in ("subject", "condition", "defense")))


def arms(rows: list[dict[str, Any]]) -> list[Arm]:
    """The arms in the order of the rows, with those before the tuning first."""
    return sorted(dict.fromkeys(map(arm, rows)), key=lambda one: one.condition != "before")


def change(rows: list[dict[str, Any]], **wanted: str) -> Change:
    """The rate of the base and of the tuned model among the rows that fit."""
    found = select(rows, **wanted)
    before = select(found, subject="base", condition="before")
    after = select(found, subject="tuned", condition="after")
    # The plain model and plain tuning are the comparison; further defenses are only in the figure and the table.
    before = select(before, defense="none") or before
    after = select(after, defense="safetuning") or after
    return Change(rate(before[0]) if before else None, rate(after[0]) if after else None)


def attack_change(rows: list[dict[str, Any]]) -> Change:
    """Attack success over all attacks: the row of the mean, or, in a run without one, the plain mean."""
    attacked = select(main_judge(rows, "evaluate"), metric=ATTACK_SUCCESS)
    names = dict.fromkeys(str(row.get("attack")) for row in attacked)
    if MEAN in names or not names:
        return change(attacked, attack=MEAN)
    each = [change(attacked, attack=name) for name in names]
    return Change(_mean([one.before for one in each]), _mean([one.after for one in each]))


def _mean(measured: list[Rate | None]) -> Rate | None:
    """The plain mean, without an interval; None unless every one was measured: a part is not the whole."""
    known = [one for one in measured if one is not None]
    if len(known) == 1 == len(measured):
        return known[0]
    values = [one.value for one in known if one.value is not None]
    if len(values) < len(measured):
        return None
    return Rate(sum(values) / len(values), None, None, sum(one.n for one in known), sum(one.unscored for one in known))


def refusal_change(rows: list[dict[str, Any]], prompts: str) -> Change:
    return change(main_judge(rows, "evaluate"), metric=REFUSED, prompts=prompts)


def apart(one: Rate, other: Rate) -> bool:
    """The intervals share no value; unknown intervals are never apart."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low > other.high or other.low > one.high


def same(one: float, other: float) -> bool:
    """The two rates read the same on the page, so that no sentence says "rose from 5% to 5%"."""
    return percent(one) == percent(other)
