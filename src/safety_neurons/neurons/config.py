"""How neurons are found."""

from typing import Literal

from pydantic import Field

from safety_neurons.core.config import Config

Tokens = Literal["last", "prompt", "response"]


class FindConfig(Config):
    """Which neurons are safety neurons."""

    score: str = "gradient"
    """Ranking of the neurons: change, contrast, effect-size, gradient, magnitude, random, removal, wanda,
    write-contrast, or your own as path/to/file.py:NAME."""
    percent: float = Field(2.0, gt=0, le=100)
    """Budget, in percent of the neurons."""
    scope: Literal["layer", "model"] | None = None
    """Spend the budget per layer or over the whole model. Default: the score's own scope."""
    selection: Literal["difference", "rejection", "none"] = "difference"
    """difference: the top neurons on harmful prompts minus those on benign ones, and the reverse. rejection: without
    the reverse. none: the top on harmful prompts alone."""
    tokens: Tokens | None = None
    """Tokens whose activations count: the last of the prompt, the whole prompt, or the response. Default: the score's
    own choice."""
    last_tokens: int = Field(1, ge=1, le=64)
    """Number of tokens at the end of the prompt to use."""
    other_model: str | None = None
    """Second checkpoint for the score `change`: a preset, a hub id, a folder or a .gguf file."""
    prompts: int = Field(100, ge=1)
    """Maximum number of training prompts to read from each set."""
    positions: int = Field(5, ge=1, le=64)
    """Number of positions at the end of the prompt to keep calibration directions for."""
