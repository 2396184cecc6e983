"""What a score is: from the statistics of two prompt sets, two numbers per neuron."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.capture import ActivationStatistics

Layers = list[Tensor]
Tokens = Literal["last", "prompt", "response"]


class WriteNorms(NamedTuple):
    """Lengths of all write vectors, float32 [neurons] per site: the sum of absolute values, and Euclid's."""

    norm_1: Layers
    norm_2: Layers


@dataclass(frozen=True)
class Reading:
    """One prompt set as a score reads it: rendered texts, of each the last `tail` tokens count (None: all).

    `other` is a second model, where there is one.
    """

    model: ChatModel
    texts: Sequence[str]
    tail: int | Sequence[int] | None
    norms: WriteNorms
    other: ChatModel | None = None
    batch_size: int = 32
    advance: Advance = ignore


@dataclass(frozen=True)
class Evidence:
    """What a score may look at; everything is per site, float32 [neurons].

    The norms are of the write vectors. `measured` is what the score's own `measure` found on harmful and on benign
    prompts.
    """

    harmful: ActivationStatistics
    benign: ActivationStatistics
    write_norm_1: Layers
    write_norm_2: Layers
    seed: int
    measured: tuple[Layers, Layers] | None = None


def weighted_mean(parts: Sequence[Layers], sizes: Sequence[int]) -> Layers:
    """The mean over prompts, from the means over parts of them."""
    weights = [size / sum(sizes) for size in sizes]
    return [
        torch.stack([value * weight for value, weight in zip(point, weights, strict=True)]).sum(0)
        for point in zip(*parts, strict=True)
    ]


@dataclass(frozen=True)
class Score:
    """A way to rank neurons.

    Args:
        tokens: whose activations count: the "last" of the prompt, the whole "prompt", or the "response".
        scope: whether the budget is spent in each "layer" or over the whole "model".
        contrastive: True where one number per neuron already compares harmful with benign; a neuron then belongs to
            the side on which it is more active. False where each side has its own ranking and the set difference of
            the two top-k sets tells them apart (the paper's selection).
        compute: returns (score on harmful, score on benign), each float32 [neurons] per site.
        measure: what the score needs besides the statistics, read from one prompt set in a pass of its own.
        merge: what `measure` would find on several prompt sets together, from what it found on each, and their sizes.
        allowed: the tokens for which the score means something.
        own_answers: whether the harmful prompts' response is the model's own answer, not a refusal put in its mouth.
        compares_models: whether it needs a second model.
        tested: whether the number of neurons that differ significantly is reported.
    """

    name: str
    formula: str
    source: str
    tokens: Tokens
    scope: Literal["layer", "model"]
    contrastive: bool
    compute: Callable[[Evidence], tuple[Layers, Layers]]
    measure: Callable[[Reading], Layers] | None = None
    merge: Callable[[Sequence[Layers], Sequence[int]], Layers] = weighted_mean
    allowed: tuple[Tokens, ...] = ("last", "prompt", "response")
    own_answers: bool = False
    compares_models: bool = False
    tested: bool = False


def by_side(values: Layers, evidence: Evidence) -> tuple[Layers, Layers]:
    """Give each neuron's contrastive score to the side on which it is more active; the other side gets -1."""
    harmful, benign = [], []
    for value, on_harmful, on_benign in zip(values, evidence.harmful.mean, evidence.benign.mean, strict=True):
        rejects = on_harmful.abs() >= on_benign.abs()
        harmful.append(value.where(rejects, -1.0))
        benign.append(value.where(~rejects, -1.0))
    return harmful, benign
