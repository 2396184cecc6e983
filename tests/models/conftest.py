"""Models whose neurons are found in each test anew."""

from collections.abc import Callable

import pytest

from builders import models
from safety_neurons.models.chat import ChatModel


@pytest.fixture
def make_model() -> Callable[..., ChatModel]:
    return models.tiny_model
