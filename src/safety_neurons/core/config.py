"""What all configurations share."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """The options of one stage, with their defaults: library, settings file, command line and docs share them.

    A pydantic model rather than a dataclass, because it knows which options were set. Unknown names are errors, so
    that a typing mistake is not a silent default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
