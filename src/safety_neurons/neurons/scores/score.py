"""The contract of a score: from the statistics of two prompt sets, two numbers per neuron."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.capture import ActivationStatistics, MeasurePass
from safety_neurons.neurons.config import Tokens

# One tensor per hook point, usually float32 [neurons].
NeuronValues = list[Tensor]


class WriteNorms(NamedTuple):
    """The 1-norms and 2-norms of all write vectors, float32 [neurons] per hook point."""

    norm_1: NeuronValues
    norm_2: NeuronValues


@dataclass(frozen=True)
class Reading:
    """One prompt set for `Score.measure`: rendered texts, of which the last `tail` tokens count (None: all).

    `other` is the second model of scores that compare two.
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
    """The inputs of a score, float32 [neurons] per hook point.

    The norms are those of the write vectors; `measured` holds the score's own measurements on harmful and on benign
    prompts.
    """

    harmful: ActivationStatistics
    benign: ActivationStatistics
    write_norm_1: NeuronValues
    write_norm_2: NeuronValues
    seed: int
    measured: tuple[NeuronValues, NeuronValues] | None = None


def weighted_mean(parts: Sequence[NeuronValues], sizes: Sequence[int]) -> NeuronValues:
    """The mean over all prompts from the means over parts of them."""
    weights = [size / sum(sizes) for size in sizes]
    return [
        torch.stack([value * weight for value, weight in zip(values, weights, strict=True)]).sum(0)
        for values in zip(*parts, strict=True)
    ]


@dataclass(frozen=True)
class Score:
    """A way to rank neurons.

    Args:
        tokens: the counted tokens: the "last" of the prompt, the whole "prompt", or the "response".
        scope: whether the budget applies to each "layer" or to the whole "model".
        contrastive: True if one number per neuron already compares harmful with benign prompts; a neuron then belongs
            to the side on which it is more active. False if each side has its own ranking, and the set difference of
            the two top-k sets separates them (the paper's selection).
        compute: returns (score on harmful, score on benign), each float32 [neurons] per hook point.
        measure: measures one prompt set in a separate pass, if the score needs more than the statistics.
        measure_pass: measures one prompt set in the pass that captures its statistics.
        merge: merges the measurements of several prompt sets, given their sizes.
        allowed: the tokens that the score supports.
        own_answers: whether the responses to harmful prompts are the model's own answers instead of a fixed refusal.
        compares_models: whether the score needs a second model.
        tested: whether to report the number of neurons that differ significantly.
    """

    name: str
    formula: str
    source: str
    tokens: Tokens
    scope: Literal["layer", "model"]
    contrastive: bool
    compute: Callable[[Evidence], tuple[NeuronValues, NeuronValues]]
    measure: Callable[[Reading], NeuronValues] | None = None
    measure_pass: Callable[[Reading], MeasurePass] | None = None
    merge: Callable[[Sequence[NeuronValues], Sequence[int]], NeuronValues] = weighted_mean
    allowed: tuple[Tokens, ...] = ("last", "prompt", "response")
    own_answers: bool = False
    compares_models: bool = False
    tested: bool = False


def by_side(values: NeuronValues, evidence: Evidence) -> tuple[NeuronValues, NeuronValues]:
    """Assign each neuron's contrastive score to the side on which it is more active; the other side gets -1."""
    harmful, benign = [], []
    for value, on_harmful, on_benign in zip(values, evidence.harmful.mean, evidence.benign.mean, strict=True):
        rejects = on_harmful.abs() >= on_benign.abs()
        harmful.append(value.where(rejects, -1.0))
        benign.append(value.where(~rejects, -1.0))
    return harmful, benign
