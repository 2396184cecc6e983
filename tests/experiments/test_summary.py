"""Outcomes in numbers, against scipy and against counting by hand."""

import random

import numpy
import pytest
from scipy.stats import binomtest

from safety_neurons.evaluation.judges import Verdict
from safety_neurons.experiments.intervention import Measurement, described, mean, moved, share

VERDICTS: tuple[Verdict, ...] = ("refused", "complied", "unscored")


def measurement(verdicts: str, kl_divergence: list[float | None] | None = None) -> Measurement:
    """Of r(efused), c(omplied) and u(nscored)."""
    names: list[Verdict] = [verdict for letter in verdicts for verdict in VERDICTS if verdict[0] == letter]
    numbers = tuple(kl_divergence or [0.5] * len(names))
    return Measurement(tuple(names), numbers, numbers)


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 7), (3, 7), (7, 7), (39, 40), (1, 500)])
def test_intervals_are_wilsons(hits: int, total: int) -> None:
    found = share([True] * hits + [False] * (total - hits))
    expected = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert found["value"] == hits / total
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert 0 <= found["low"] <= found["value"] + 1e-9
    assert found["value"] - 1e-9 <= found["high"] <= 1


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_of_all_prompts_and_add_up_to_one(seed: int) -> None:
    drawn = random.Random(seed)
    verdicts = "".join(drawn.choice("rcu") for _ in range(drawn.randint(1, 30)))
    found = described(measurement(verdicts))
    assert found["n"] == len(verdicts)
    for name, letter in (("refused", "r"), ("answered", "c"), ("broken", "u")):
        assert found[name]["value"] == verdicts.count(letter) / len(verdicts)
    assert sum(found[name]["value"] for name in ("refused", "answered", "broken")) == pytest.approx(1)


def test_prompts_are_moved_that_were_something_else_before() -> None:
    before, after = measurement("rrrcccuuu"), measurement("rcurcurcu")
    assert moved(before, after, "complied") == [
        *(False, True, False),
        # Those that complied already are not moved.
        *(False, False, False),
        *(False, True, False),
    ]
    assert moved(before, before, "refused") == [False] * 9
    assert sum(moved(before, after, "refused")) == 2


def test_means_leave_out_what_has_no_number() -> None:
    found = mean([1.0, None, 2.0, 6.0, None])
    assert found["value"] == pytest.approx(3)
    assert found["low"] is not None
    assert found["high"] is not None
    assert 1 <= found["low"] < 3 < found["high"] <= 6
    assert found == mean([1.0, 2.0, 6.0])


@pytest.mark.parametrize("values", [[], [None], [None, None]])
def test_a_mean_of_nothing_is_none(values: list[float | None]) -> None:
    assert mean(values) == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [2.5], [2.5, None]])
def test_numbers_that_do_not_differ_have_no_interval(values: list[float | None]) -> None:
    assert mean(values) == {"value": values[0], "low": None, "high": None}


def test_the_interval_of_a_mean_is_about_the_normal_one() -> None:
    values = numpy.random.default_rng(0).normal(3, 2, 400)
    found = mean(values.tolist())
    half = 1.96 * values.std() / 20
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.05)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.05)


def test_distances_and_surprise_are_described_apart() -> None:
    found = described(Measurement(("refused", "complied"), (1.0, 2.0), (None, 7.0)))
    assert found["nll"]["value"] == 1.5
    assert found["kl_divergence"]["value"] == 7
