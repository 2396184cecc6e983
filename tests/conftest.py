"""Fixtures of the whole suite; what they are made of is in the package `builders`."""

import gc
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from builders import models
from safety_neurons.calibration import clouds
from safety_neurons.experiments import guard_test
from safety_neurons.models.chat import ChatModel

# Set before the tests begin, it would be the console's width in all of them.
os.environ.pop("COLUMNS", None)
# Threads over tensors this small only wait for each other, for many times as long where the cores are shared.
torch.set_num_threads(1)
# Files that wait for processes of their own, or that tune models.
SLOW = ("test_processes.py", "test_safetune_processes.py", "test_workers.py", "test_auto_tune.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first, so that the others fill the gaps when the tests are shared out among processes."""
    items.sort(key=lambda item: item.get_closest_marker("real") is None and item.path.name not in SLOW)


def pytest_collection_finish() -> None:
    """Each training ends with a garbage collection, most of which goes through what was imported and collected."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def cores() -> int:
    """Number of cores for each process of the tests."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@pytest.fixture(autouse=True)
def _few_resamples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals of a guard's test and of clouds take longer than all else that commands do on tiny models."""
    if request.path.parent.name != "calibration":
        monkeypatch.setattr(guard_test, "RESAMPLES", 20)
        monkeypatch.setattr(clouds, "RESAMPLES", 20)


@pytest.fixture
def make_model() -> Callable[..., ChatModel]:
    return models.copied_model


@pytest.fixture
def model(make_model: Callable[..., ChatModel]) -> ChatModel:
    return make_model()


@pytest.fixture(params=models.ARCHITECTURES)
def any_model(request: pytest.FixtureRequest, make_model: Callable[..., ChatModel]) -> ChatModel:
    return make_model(request.param)


@pytest.fixture(params=models.MIXTURES)
def mixture(request: pytest.FixtureRequest, make_model: Callable[..., ChatModel]) -> ChatModel:
    """A mixture of experts."""
    return make_model(request.param)


@pytest.fixture(params=models.DENSE)
def tunable_model(request: pytest.FixtureRequest, make_model: Callable[..., ChatModel]) -> ChatModel:
    return make_model(request.param)


@pytest.fixture(params=models.ONE_OF_EACH)
def one_of_each(request: pytest.FixtureRequest, make_model: Callable[..., ChatModel]) -> ChatModel:
    return make_model(request.param)


@pytest.fixture(params=models.ONE_OF_EACH_DENSE)
def one_of_each_tunable(request: pytest.FixtureRequest, make_model: Callable[..., ChatModel]) -> ChatModel:
    return make_model(request.param)


@pytest.fixture
def pack() -> Callable[[ChatModel], ChatModel]:
    return models.pack


@pytest.fixture
def naive_activations() -> Callable[[ChatModel, Tensor], list[tuple[Tensor, Tensor]]]:
    return models.activations_by_hand


@pytest.fixture
def harmful() -> list[str]:
    return list(models.HARMFUL)


@pytest.fixture
def benign() -> list[str]:
    return list(models.BENIGN)


@pytest.fixture
def make_worded() -> Callable[..., ChatModel]:
    return models.worded_model


@pytest.fixture
def worded() -> ChatModel:
    return models.worded_model()
