"""Two evaluations side by side, against counting by hand."""

import json
import random
from dataclasses import asdict
from math import comb

import pytest

from safety_neurons.core.statistics import by_request, compare_verdicts, holm
from safety_neurons.evaluation.judges import Verdict

LETTERS: dict[str, Verdict] = {"r": "refused", "c": "complied", "u": "unscored"}


def verdicts(text: str, start: int = 0) -> dict[str, Verdict]:
    """One letter a prompt."""
    return {f"p{number:02d}": LETTERS[letter] for number, letter in enumerate(text, start)}


def test_flips_and_shares() -> None:
    found = compare_verdicts(verdicts("ccccrruurc"), verdicts("crrrccruru"))
    assert found.gained == ("p04", "p05")
    assert found.lost == ("p01", "p02", "p03")
    assert (found.unscored_first, found.unscored_second) == (2, 2)
    # Without the prompts 6, 7 and 9, which one of the two has unscored.
    assert (found.first.value, found.first.n) == (4 / 7, 7)
    assert (found.second.value, found.second.n) == (3 / 7, 7)
    assert found.difference.value == pytest.approx(-1 / 7)
    assert found.difference.low is not None
    assert found.difference.high is not None
    assert -1 <= found.difference.low < -1 / 7 < found.difference.high <= 1
    # Three of five flips or more to one side, twice.
    assert found.p_value == pytest.approx(min(1.0, 2 * sum(comb(5, k) for k in (3, 4, 5)) / 2**5))
    json.dumps(asdict(found), allow_nan=False)


def test_the_mirror_image() -> None:
    one, other = verdicts("ccccrruurc"), verdicts("crrrccruru")
    found, mirrored = compare_verdicts(one, other), compare_verdicts(other, one)
    assert (found.gained, found.lost) == (mirrored.lost, mirrored.gained)
    assert found.difference.value == pytest.approx(-(mirrored.difference.value or 0))
    assert found.p_value == mirrored.p_value


def test_prompts_that_one_side_lacks_are_counted_apart() -> None:
    found = compare_verdicts(verdicts("rrcc"), verdicts("ccr", start=2))
    assert (found.only_first, found.only_second, found.first.n) == (2, 1, 2)
    assert found.difference.value == 0


@pytest.mark.parametrize(("one", "other"), [("", ""), ("uu", "cr"), ("cr", "uu")])
def test_nothing_to_compare(one: str, other: str) -> None:
    found = compare_verdicts(verdicts(one), verdicts(other))
    assert found.difference.value is None
    assert found.first.value is None
    assert found.p_value == 1


def test_over_refusal_counts_refusals() -> None:
    found = compare_verdicts(verdicts("cccr"), verdicts("crrr"), counted="refused")
    assert found.gained == ("p01", "p02")
    assert found.difference.value == 0.5


def test_requests_that_were_not_made_have_no_verdict() -> None:
    assert by_request(["a", "b"], ["refused", None]) == {"a": "refused"}


def test_holm_is_the_step_down_procedure() -> None:
    """A p-value is adjusted to the least level at which the procedure rejects it."""

    def rejected(p_values: list[float], level: float) -> set[int]:
        found: set[int] = set()
        for step, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[place] > level / (len(p_values) - step):
                break
            found.add(place)
        return found

    generator = random.Random(0)
    for _ in range(50):
        p_values = [generator.random() ** 3 for _ in range(generator.randint(1, 8))]
        adjusted = holm(p_values)
        assert all(one >= p for one, p in zip(adjusted, p_values, strict=True))
        for level in (0.01, 0.05, 0.2, 0.7):
            assert rejected(p_values, level) == {place for place, one in enumerate(adjusted) if one <= level}
    assert holm([]) == []
