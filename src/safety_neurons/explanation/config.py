"""How neurons are explained."""

from typing import Literal

from pydantic import Field

from safety_neurons.core.config import Config


class ExplainConfig(Config):
    """Which words the neurons promote and suppress."""

    words: int = Field(10, ge=1, le=100)
    """Number of words per layer, side and direction (promoted, suppressed)."""
    weighting: Literal["difference", "mean"] = "difference"
    """Weight of the write vectors: the mean activation (the paper), or its difference from the other prompts."""
    neurons: int = Field(3, ge=0, le=100)
    """Number of single neurons per layer and side to read in words as well."""
    random_sets: int = Field(1000, ge=0)
    """Number of random neuron sets of the same size to compare the vocabulary with. 0: no test."""
    lens_prompts: int = Field(40, ge=0)
    """Number of prompts of each set to read the residual stream from, for the logit lens. 0: no logit lens."""
