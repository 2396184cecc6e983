"""What all configurations share."""

import reprlib
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from safety_neurons.core.addresses import take_credentials
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import did_you_mean

# The largest seed of numpy; larger integers overflow in torch, too.
_LARGEST = 2**32 - 1


class Config(BaseModel):
    """The options of one stage, with their defaults: library, settings file, command line and docs share them.

    A pydantic model rather than a dataclass, because it knows which options were set. Unknown names are errors, so
    that a typing mistake is not a silent default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_credentials(cls, values: Any) -> Any:
        # Settings are written to files, and shown.
        return take_credentials(values)

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(one, int) and abs(one) > _LARGEST for one in numbers):
            raise ValueError(f"{info.field_name} is too large: give a number of at most {_LARGEST}")
        return value

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """The config with these values.

        Raises:
            SafetyNeuronsError: a name is unknown or a value is not allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SafetyNeuronsError(explain_problems(error, cls)) from error

    def override(self, options: Mapping[str, Any]) -> Self:
        """This config with other values for some of its fields; same errors as `checked`."""
        return self.checked(self.model_dump(exclude_unset=True) | dict(options)) if options else self


def explain_problems(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong with which option of `model`, in one paragraph."""
    sentences: list[str] = []
    wrong: dict[str, list[str]] = {}
    for problem in error.errors():
        path, siblings = _path(model, problem["loc"])
        if problem["type"] == "value_error":
            sentences.append(f"{problem['ctx']['error']}.")
        elif problem["type"] == "extra_forbidden":
            hint = did_you_mean(path.rpartition(".")[2], siblings) or f"The options are {', '.join(siblings)}."
            sentences.append(f"There is no option {path}. {hint.strip()}")
        else:
            # A union has a problem for each of its members.
            said = problem["msg"][0].lower() + problem["msg"][1:]
            wrong.setdefault(f"{path} cannot be {_shown(problem['input'])}", []).append(said)
    return " ".join([*sentences, *(f"{start}: {'; or '.join(said)}." for start, said in wrong.items())])


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:
        # Python writes no integers of thousands of digits.
        return "a number of so many digits"


def _path(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """The option that pydantic's location names, without its names for the members of unions; and its siblings."""
    names: list[str] = []
    for name in location:
        names.append(str(name))
        field = model.model_fields.get(str(name))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        model = field.annotation
    return ".".join(names), list(model.model_fields)
