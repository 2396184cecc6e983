"""How neurons are calibrated, and how the guard decides when to."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from safety_neurons.core.config import Config

Toward = Literal["rejection", "conformity"]
Direction = Literal["position", "pooled"]
# More than any context has, and few enough for every integer type.
GeneratedTokens = Annotated[int, Field(ge=0, le=1_000_000)] | Literal["all"]


class CalibrationConfig(Config):
    """How the activations of neurons are moved."""

    alpha_conformity: float = Field(4.0, ge=0)
    """Strength toward conformity: how many times the difference of the mean activations is added."""
    alpha_rejection: float = Field(3.0, ge=0)
    """Strength toward rejection; also used to make the tuning corpus' refusals."""
    subset: Literal["both", "rejection", "conformity"] = "both"
    """Neurons to calibrate."""
    prompt_positions: Annotated[int, Field(ge=0, le=64)] | Literal["template", "all"] = 5
    """Number of positions at the end of the prompt. template: the tokens that the chat template adds after the user's
    words. all: the whole prompt; before the positions with known directions, their mean is used."""
    generated_tokens: GeneratedTokens = 0
    """Number of generated tokens to calibrate as well, with the direction of the prompt's last position."""
    direction: Direction = "position"
    """The difference of means at each position, or pooled over the positions."""
    edit: Literal["add", "clamp"] = "add"
    """add: add the difference alpha times. clamp: move the fraction alpha of the way to the other class's mean."""
    keep_norm: bool = False
    """Rescale the calibrated neurons of a layer, token by token, to their joint norm before calibration."""
    layers: tuple[int, int] | None = None
    """First and last layer to calibrate. Default: all layers."""

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if self.layers is not None and not 0 <= self.layers[0] <= self.layers[1]:
            raise ValueError(f"layers are the first and the last one, such as 8 20, not {self.layers!r}")
        return self

    def alpha(self, toward: Toward) -> float:
        """The strength in this direction."""
        return self.alpha_conformity if toward == "conformity" else self.alpha_rejection

    def but_alphas(self) -> dict[str, Any]:
        """All fields but the two strengths, for cache keys and files that hold one strength of their own."""
        return self.model_dump(exclude={"alpha_conformity", "alpha_rejection"})


class GuardConfig(Config):
    """Calibration toward rejection for the prompts that the neurons classify as harmful."""

    percent: float = Field(0.3, gt=0, le=100)
    """Budget of the guard's own neurons, in percent: the best by the run's score. A larger guard decides later."""
    prompts: int = Field(120, ge=1)
    """Maximum number of training prompts per set to learn from. Each is read plain and in a disguise."""
    false_positive_rate: float = Field(0.01, gt=0, lt=1)
    """Fraction of ordinary prompts that may be flagged; sets the threshold."""
    layer: int | None = Field(None, ge=0)
    """Layer in which the guard decides. Default: the earliest one that is nearly as good as the best."""
    alpha: float | None = Field(None, ge=0)
    """Strength toward rejection; everything else is as in calibrate. Default: the best of 2, 3, 4 and 6 on the
    validation prompts; in Python, alpha_rejection."""
    generated_tokens: GeneratedTokens = 4
    """Number of generated tokens to calibrate as well."""
