"""What the fields of results may hold: numbers that can be computed with and shown, whatever a file says."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from safety_neurons.core.statistics import Rate

# Beyond these, sums and ratios are not numbers any more, or fill a page with digits.
_MOST = 10**15
_LARGEST = 1e100
# Layers and hook points; no figure has room for more.
_MOST_LAYERS = 100_000

Count = Annotated[int, Field(ge=0, le=_MOST)]
Layer = Annotated[int, Field(ge=0, lt=_MOST_LAYERS)]
Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
Positive = Annotated[float, Field(ge=0, le=_LARGEST)]
# From 0 to 1; sums of fractions miss the ends by the last bits.
_ROUNDING = 1e-9
Share = Annotated[float, Field(ge=-_ROUNDING, le=1 + _ROUNDING)]
Percent = Annotated[float, Field(ge=0, le=100 + _ROUNDING)]
Difference = Annotated[float, Field(ge=-1 - _ROUNDING, le=1 + _ROUNDING)]


class Section(BaseModel):
    """A part of the results. Fields that it does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, defer_build=True, allow_inf_nan=False)


def one_of(*kinds: type[Section]) -> AfterValidator:
    """For a field that holds an object of one of these kinds, and keeps it as it is."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        problems = []
        for kind in kinds:
            try:
                kind.model_validate(value)
            except ValidationError as error:
                problems.append(error)
            else:
                return value
        # Of the kind that it is nearest to.
        problem = min(problems, key=ValidationError.error_count).errors()[0]
        raise ValueError(f"{'.'.join(map(str, problem['loc']))[:200]}: {problem['msg']}")

    return AfterValidator(check)


def _counted(value: Any) -> Any:
    return {"n": 0, "unscored": 0} | value if isinstance(value, dict) else value


def _sensible(found: Rate) -> Rate:
    for name in ("value", "low", "high"):
        value = getattr(found, name)
        # False for NaN, too.
        if value is not None and not abs(value) <= _LARGEST:
            raise ValueError(f"{name} is not a number that can be shown")
    if not (0 <= found.n <= _MOST and 0 <= found.unscored <= _MOST):
        raise ValueError("n and unscored are counts, 0 or more")
    return found


def _between_0_and_1(found: Rate) -> Rate:
    ends = -_ROUNDING, 1 + _ROUNDING
    if any(value is not None and not ends[0] <= value <= ends[1] for value in (found.value, found.low, found.high)):
        raise ValueError("a rate and the ends of its interval are from 0 to 1")
    return found


# A mean; where all prompts of a row were counted, their number stands in the row and not in the mean.
Mean = Annotated[Rate, AfterValidator(_sensible), BeforeValidator(_counted)]
# A rate, likewise.
Measured = Annotated[Rate, AfterValidator(_between_0_and_1), AfterValidator(_sensible), BeforeValidator(_counted)]


class RateFields(Section):
    """A rate among the other fields of a row."""

    value: Share | None
    low: Share | None
    high: Share | None
    n: Count
    unscored: Count

    @property
    def rate(self) -> Rate:
        return Rate(self.value, self.low, self.high, self.n, self.unscored)


class Change(Section):
    """A difference of two rates."""

    value: Difference | None
    low: Difference | None
    high: Difference | None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.low is None) is not (self.high is None):
            raise ValueError("an interval has two ends")
        return self
