"""The section of results.json on the selection of pass and scale: every candidate that was measured, and the choice."""

import math
from typing import Self

from pydantic import Field, model_validator

from safety_neurons.core.fields import Count, Measured, Positive, Section, Share

# Rates are fractions of counts: a difference below this is rounding.
_DIGITS = 9


class ValidationPoint(Section):
    """A model's rates on validation prompts. All points of a curve are about the same prompts.

    `refused` has each safe set, and `disguised` the safe requests in disguises, which are measured and limit nothing:
    few people wrap an ordinary request in an attack. Broken answers count as refusals. Where neither the harmful
    prompts nor the disguised ones were asked, `attack_success` is None and `disguised` is empty.
    """

    attack_success: Measured | None
    refused: dict[str, Measured] = Field(min_length=1)
    disguised: dict[str, Measured] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _measured(self) -> Self:
        rates = [*self.shares.values(), *([self.attack_success] if self.attack_success else [])]
        if any(rate.value is None for rate in rates):
            raise ValueError("a rate of validation prompts has a value")
        return self

    @property
    def shares(self) -> dict[str, Measured]:
        """What is refused of all safe requests."""
        return {**self.refused, **self.disguised}


class ScalePoint(ValidationPoint):
    """A candidate: the delta after `epoch` passes over the corpus times `scale`. `norm` is the L2 norm of both."""

    epoch: Count
    scale: Positive
    norm: Positive


class ScaleCurve(Section):
    """The candidates for the tuned model, and the selected one: an index into `points`.

    `subject` names the tuned neurons: found or random. `base` is the base model, which is the model at scale 0.
    """

    subject: str
    max_over_refusal: Share
    base: ValidationPoint
    points: list[ScalePoint] = Field(min_length=1)
    selected: Count

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.selected >= len(self.points):
            raise ValueError(f"candidate {self.selected} was selected of {len(self.points)}")
        if any(point.refused.keys() != self.base.refused.keys() for point in self.points):
            raise ValueError("all points are about the same safe prompt sets")
        if any(point.disguised.keys() - self.base.disguised.keys() for point in self.points):
            raise ValueError("a candidate is asked nothing that the base model is not")
        if self.base.attack_success is None or self.selection.attack_success is None:
            raise ValueError("the attack success of the base model and of the selected candidate is known")
        return self

    @property
    def selection(self) -> ScalePoint:
        """The selected candidate."""
        return self.points[self.selected]

    @property
    def meets_margin(self) -> bool:
        """Whether the selected candidate refuses no safe set more than before, plus the margin."""
        return self.excess(self.selection) == 0

    def excess(self, point: ValidationPoint) -> float:
        """By how much a point exceeds the margin of over-refusal; see `excess`."""
        return excess(point, self.base, self.max_over_refusal)


def over_refusal(point: ValidationPoint, base: ValidationPoint) -> float:
    """The largest increase over the base model, among the safe sets, in the share that is refused."""
    return max((rate.value or 0.0) - (base.refused[name].value or 0.0) for name, rate in point.refused.items())


def excess(point: ValidationPoint, base: ValidationPoint, max_over_refusal: float) -> float:
    """How far `over_refusal` is above the margin; 0 if it is within."""
    return max(0.0, round(over_refusal(point, base) - max_over_refusal, _DIGITS))


def select(points: list[ScalePoint], base: ValidationPoint, max_over_refusal: float) -> int:
    """The index of the candidate with the least attack success of those within the margin of over-refusal.

    Without any, it is the one that exceeds the margin least. Ties go to the smaller change.
    """

    def harm(index: int) -> tuple[float, float, float]:
        point = points[index]
        attacks = math.inf if point.attack_success is None else point.attack_success.value or 0.0
        return excess(point, base, max_over_refusal), round(attacks, _DIGITS), point.norm

    return min(range(len(points)), key=harm)
