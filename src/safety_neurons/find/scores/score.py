"""What a score is: from the statistics of two prompt sets, two numbers per neuron."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from safety_neurons.find.capture import ActivationStatistics

Layers = list[Tensor]


@dataclass(frozen=True)
class Evidence:
    """What a score may look at. The norms are of the write vectors, float32 [neurons] per layer."""

    harmful: ActivationStatistics
    benign: ActivationStatistics
    write_norm_1: Layers
    write_norm_2: Layers
    seed: int


@dataclass(frozen=True)
class Score:
    """A way to rank neurons.

    Args:
        positions: the tokens whose activations count: the "last" of the prompt, the whole "prompt", or the "response".
        scope: whether the budget is spent in each "layer" or over the whole "model".
        contrastive: True where one number per neuron already compares harmful with benign; a neuron then belongs to
            the side on which it is more active. False where each side has its own ranking and the set difference of
            the two top-k sets tells them apart (the paper's selection).
        compute: returns (score on harmful, score on benign), each float32 [neurons] per layer.
    """

    name: str
    formula: str
    source: str
    positions: Literal["last", "prompt", "response"]
    scope: Literal["layer", "model"]
    contrastive: bool
    compute: Callable[[Evidence], tuple[Layers, Layers]]


def by_side(values: Layers, evidence: Evidence) -> tuple[Layers, Layers]:
    """Give each neuron's contrastive score to the side on which it is more active; the other side gets -1."""
    harmful, benign = [], []
    for value, on_harmful, on_benign in zip(values, evidence.harmful.mean, evidence.benign.mean, strict=True):
        rejects = on_harmful.abs() >= on_benign.abs()
        harmful.append(value.where(rejects, -1.0))
        benign.append(value.where(~rejects, -1.0))
    return harmful, benign
