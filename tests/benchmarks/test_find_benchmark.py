"""The parts of benchmarks/find.py that could mislead: who is compared with whom, and that contenders do not meet."""

import functools

import find as benchmark
import pytest
import torch
from torch import nn

from safety_neurons.models.chat import ChatModel


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    """A slow moment of the machine slows a whole round, and must not tell between those who ran in it."""
    spent = {
        "a": [benchmark.Spent(2, 1), benchmark.Spent(30, 3), benchmark.Spent(4, 9)],
        "b": [benchmark.Spent(1, 1), benchmark.Spent(10, 2), benchmark.Spent(4, 1)],
    }
    assert benchmark.ratio(spent, "a", "b", "wall") == 2
    assert benchmark.ratio(spent, "a", "b", "processor") == 1.5


def test_every_contender_has_its_turn_in_every_round_and_each_is_first_once() -> None:
    turns: list[str] = []
    works = {name: functools.partial(turns.append, name) for name in "abc"}
    spent = benchmark.take_turns(works, rounds=3)
    assert turns == list("abcbcacab")
    assert {name: len(times) for name, times in spent.items()} == {"a": 3, "b": 3, "c": 3}


def test_contenders_share_weights_but_no_modules(model: ChatModel) -> None:
    other = benchmark.own_modules(model.model)
    inputs = model.encode(["Hi there"])
    with torch.no_grad():
        expected = model.model(**inputs).logits
        assert torch.equal(other(**inputs).logits, expected)
        other.model.layers[0] = nn.Identity()
        assert torch.equal(model.model(**inputs).logits, expected)
    assert other.lm_head.weight is model.model.lm_head.weight


def test_memory_is_what_was_taken_above_the_start() -> None:
    """Though it is given back before the end."""
    size = 50 * 2**20
    assert benchmark.peak_while(lambda: torch.ones(size // 4)) == pytest.approx(size, rel=0.1)
