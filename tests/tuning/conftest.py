"""A neuron set and a corpus of all kinds, for tests of the training."""

from collections.abc import Callable

import pytest
import torch

from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet, Provenance
from safety_neurons.tuning.corpus import Corpus, Pair

WORDS = ("apples", "pears and plums", "a bicycle", "soup", "the long road home", "tea")


@pytest.fixture
def corpus() -> Corpus:
    """Seventeen pairs of many lengths, some cut off, of all kinds."""
    pairs = []
    for number in range(17):
        kind = ("refusal", "benign", "borderline")[number % 3]
        thing = WORDS[number % len(WORDS)] * (1 + number % 4)
        response = f"No {thing}." if kind == "refusal" else f"Yes, {thing}."
        pairs.append(Pair(kind, f"p{number}", f"Say {thing}?", "", response, cut_off=number % 5 == 0))  # type: ignore[arg-type]
    return Corpus(tuple(pairs))


@pytest.fixture
def neuron_set() -> Callable[..., NeuronSet]:
    return drawn_neurons


def drawn_neurons(model: ChatModel, count: int = 12) -> NeuronSet:
    """`count` neurons of each site, half of them for each side."""
    generator = torch.Generator().manual_seed(0)
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    drawn = [torch.randperm(width, generator=generator)[:count] for width in widths]
    provenance = Provenance(
        model.name, model.identity, "by hand", 1.0, "layer", 0, (1,) * len(widths), model.parameters
    )
    return NeuronSet(
        tuple(layer[: count // 2].sort().values for layer in drawn),
        tuple(layer[count // 2 :].sort().values for layer in drawn),
        widths,
        tuple(hook_point.layer for hook_point in model.hook_points),
        provenance,
    )
