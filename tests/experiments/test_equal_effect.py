"""The strength at a KL: found where there is one, and the nearest where there is none."""

import math

import pytest

from safety_neurons.core.errors import NotFiniteError
from safety_neurons.experiments.equal_effect import STEPS, TOLERANCE, match_kl


@pytest.mark.parametrize("target", [0.01, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("scale", [1e-3, 0.5, 40.0])
def test_the_strength_has_the_kl(target: float, scale: float) -> None:
    asked: list[float] = []

    def kl_at(strength: float) -> float:
        asked.append(strength)
        return (strength / scale) ** 2

    found = match_kl(kl_at, target)
    assert found.reached
    assert found.kl_divergence == kl_at(found.strength) == pytest.approx(target, rel=TOLERANCE)
    assert len(asked) - 1 == len(set(asked)) <= STEPS


@pytest.mark.parametrize("start", [0.01, 1.0, 100.0])
def test_a_kl_that_grows_in_any_way_is_reached(start: float) -> None:
    for kl_at in (math.expm1, lambda strength: 3 * math.tanh(strength), lambda strength: math.log1p(strength**4)):
        assert match_kl(kl_at, 2.0, start).reached


def test_what_saturates_below_the_target_is_said_not_to_reach_it() -> None:
    found = match_kl(math.tanh, 2.0)
    assert not found.reached
    assert found.kl_divergence == pytest.approx(1.0)


def test_what_jumps_over_the_target_is_said_not_to_reach_it() -> None:
    found = match_kl(lambda strength: 0.4 if strength < 3 else 5.0, 1.0)
    assert not found.reached
    assert found.kl_divergence == 0.4


def test_what_is_no_number_is_too_strong() -> None:
    found = match_kl(lambda strength: strength if strength < 3 else float("nan"), 2.5)
    assert found.reached
    assert match_kl(lambda _: float("nan"), 1.0).reached is False


@pytest.mark.parametrize("start", [0.5, 10.0])
def test_a_strength_at_which_the_model_overflows_is_too_strong(start: float) -> None:
    def kl_at(strength: float) -> float:
        if strength >= 3:
            raise NotFiniteError("overflow")
        return strength

    assert match_kl(kl_at, 2.5, start).reached
    found = match_kl(kl_at, 7.0, start)
    assert not found.reached
    assert found.kl_divergence == pytest.approx(3.0, rel=0.05)


def test_a_model_that_overflows_at_every_strength_is_an_error() -> None:
    def kl_at(_strength: float) -> float:
        raise NotFiniteError("overflow")

    with pytest.raises(NotFiniteError):
        match_kl(kl_at, 1.0)
