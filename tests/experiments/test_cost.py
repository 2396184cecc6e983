"""What a piece of work costs."""

import time

import pytest
import torch

from safety_neurons.experiments.cost import costing


def test_cost_sees_time_and_memory() -> None:
    with costing(torch.device("cpu")) as cost:
        held = torch.ones(32 * 2**20)
        time.sleep(0.2)
        del held
        small = torch.ones(1)
    assert small
    assert cost.seconds > 0
    assert 100 * 2**20 < cost.peak < 2**30


def test_memory_is_that_of_the_device_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that is not the first."""
    second = torch.device("cuda", 1)
    in_use = {second: 5}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: in_use[device])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: in_use[device])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: in_use[device])
    with costing(second) as cost:
        in_use[second] = 12
    assert cost.peak == 7
