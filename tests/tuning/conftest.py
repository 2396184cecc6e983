"""A neuron set and a corpus of all kinds, for tests of the training."""

from collections.abc import Callable

import pytest

from builders.models import drawn_neurons
from safety_neurons.neurons.neuron_set import NeuronSet
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
