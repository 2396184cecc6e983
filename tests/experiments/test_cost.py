"""What a piece of work costs."""

import time

import torch

from safety_neurons.experiments.cost import costing


def test_cost_sees_time_and_memory() -> None:
    with costing() as cost:
        held = torch.ones(32 * 2**20)
        time.sleep(0.2)
        del held
        small = torch.ones(1)
    assert small
    assert cost.seconds > 0
    if not torch.cuda.is_available():
        assert 100 * 2**20 < cost.peak < 2**30
