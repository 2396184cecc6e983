"""Rates and their intervals against formulas written down here."""

import math
import random
import warnings
from math import comb
from statistics import fmean

import numpy
import pytest

from safety_neurons.core import statistics
from safety_neurons.core.statistics import (
    Rate,
    Row,
    by_request,
    compare_verdicts,
    mcnemar,
    mean,
    mean_rate,
    paired_difference,
    rate,
    row,
    share,
)
from safety_neurons.evaluation.judges import Verdict

Z = 1.959963984540054


def verdicts(text: str) -> list[Verdict]:
    """One letter an answer: r(efused), c(omplied), u(nscored)."""
    letters: dict[str, Verdict] = {"r": "refused", "c": "complied", "u": "unscored"}
    return [letters[letter] for letter in text]


def wilson(hits: int, n: int) -> tuple[float, float]:
    share = hits / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (20, 40), (37, 100), (1, 1000)])
def test_rate_has_wilsons_interval(hits: int, n: int) -> None:
    found = rate(verdicts("c" * hits + "r" * (n - hits)), "complied")
    low, high = wilson(hits, n)
    assert found.value == hits / n
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)
    assert (found.n, found.unscored) == (n, 0)


def test_unscored_is_neither_side() -> None:
    answers = verdicts("rrcuu")
    assert rate(answers, "refused").value == pytest.approx(2 / 3)
    assert rate(answers, "complied").value == pytest.approx(1 / 3)
    assert rate(answers, "refused").n == 3
    assert rate(answers, "refused").unscored == 2
    without = rate(verdicts("rrc"), "refused")
    assert (rate(answers, "refused").low, rate(answers, "refused").high) == (without.low, without.high)


@pytest.mark.parametrize("text", ["", "u", "uuuu"])
def test_nothing_judged_is_no_rate(text: str) -> None:
    assert rate(verdicts(text), "refused") == Rate(None, None, None, 0, len(text))


def test_the_two_sides_add_up() -> None:
    answers = verdicts("rcrrcccru")
    refused, complied = rate(answers, "refused"), rate(answers, "complied")
    assert refused.value is not None
    assert complied.value == pytest.approx(1 - refused.value)
    assert refused.low is not None
    assert complied.high == pytest.approx(1 - refused.low)


GROUPS = [
    ["rrcc", "rccc"],
    ["rrcrrrcrrrrr", "cccrccccccrc", "rrrrrrrrrrrc"],
    ["rucu", "rrrc", "cuuu"],
    ["rcrcrcrcrcrcrcrcrcrc"],
]


@pytest.mark.parametrize("texts", GROUPS, ids=len)
def test_mean_rate_is_the_mean_of_the_groups(texts: list[str]) -> None:
    groups = [verdicts(text) for text in texts]
    found = mean_rate(groups, "complied", seed=3)
    shares = [text.count("c") / (len(text) - text.count("u")) for text in texts]
    assert found.value == pytest.approx(sum(shares) / len(shares))
    assert found.unscored == sum(text.count("u") for text in texts)
    assert found.n == sum(map(len, texts)) - found.unscored
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_mean_rate_is_the_same_for_the_same_seed() -> None:
    groups = [verdicts("rrcrrrcrrrrccrr"), verdicts("cccrcccuccrcrrc")]
    assert mean_rate(groups, "complied", seed=1) == mean_rate(groups, "complied", seed=1)


def test_mean_rate_counts_one_fate_under_many_attacks_once() -> None:
    """Four copies of one group say no more than the group: the interval must not shrink."""
    group = verdicts("rrcrrrcrrrrccrrrcrrr")
    one, four = mean_rate([group], "complied", seed=0), mean_rate([group] * 4, "complied", seed=0)
    assert one.low is not None
    assert one.high is not None
    assert four.value == pytest.approx(one.value)
    assert four.low == pytest.approx(one.low)
    assert four.high == pytest.approx(one.high)
    assert four.n == 4 * one.n


def test_mean_rate_of_one_group_is_near_wilson() -> None:
    group = verdicts("rrcrrrcrrrrccrrrcrrr" * 5)
    found, expected = mean_rate([group], "complied", seed=0), rate(group, "complied")
    assert expected.low is not None
    assert expected.high is not None
    assert found.low == pytest.approx(expected.low, abs=0.03)
    assert found.high == pytest.approx(expected.high, abs=0.03)


@pytest.mark.parametrize(("letter", "value"), [("c", 1.0), ("r", 0.0)])
def test_where_nothing_varies_the_interval_is_that_of_one_group(letter: str, value: float) -> None:
    groups = [verdicts(letter * 12)] * 3
    found = mean_rate(groups, "complied", seed=0)
    low, high = wilson(round(value * 12), 12)
    assert found.value == value
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)
    assert found.n == 36


@pytest.mark.parametrize(
    "texts", [["c"], ["c", "r"], ["r", "c", "c", "c", "c", "c"], ["c", "r", "r", "r", "r", "r"], ["cr", "rc"]], ids=str
)
def test_interval_of_a_few_requests_contains_the_value(texts: list[str]) -> None:
    found = mean_rate([verdicts(text) for text in texts], "complied", seed=0)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1


MOSTLY_UNSCORED = [["cruuuuuu"], ["cuuuuuuu", "ruuuuuuu"], ["crcuuuuuuu", "uuuuuuurrc"], ["ccuuuu", "cuuuuu"]]


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("texts", MOSTLY_UNSCORED, ids=str)
def test_mostly_unscored_groups_have_a_finite_interval(texts: list[str]) -> None:
    """JSON knows no NaN: a resample without a single judged answer must not become the interval."""
    found = mean_rate([verdicts(text) for text in texts], "complied", seed=0)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("texts", [*MOSTLY_UNSCORED, *GROUPS], ids=str)
def test_mean_rate_says_nothing_to_the_terminal(texts: list[str]) -> None:
    """The command line prints warnings: numpy's about empty slices mean nothing to a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean_rate([verdicts(text) for text in texts], "complied", seed=0)


@pytest.mark.parametrize("texts", [["uuuu"], ["rcrc", "uuuu"], ["", ""]], ids=str)
def test_a_group_without_any_verdict_leaves_no_mean(texts: list[str]) -> None:
    found = mean_rate([verdicts(text) for text in texts], "complied", seed=0)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.unscored == sum(text.count("u") for text in texts)
    assert found.n == sum(len(text) - text.count("u") for text in texts)


def test_requests_that_a_group_does_not_have_are_no_unscored_answers() -> None:
    found = mean_rate([["refused", None, "complied", "unscored"], verdicts("rrcc")], "complied", seed=0)
    assert found.value == 0.5
    assert (found.n, found.unscored) == (6, 1)


def test_a_paired_difference_is_a_bootstrap_over_requests() -> None:
    """Against one written down naively, of more resamples of its own; some requests are not scored in all groups."""
    draw = random.Random(1)
    one, other = ([[draw.choice(("complied", "refused")) for _ in range(30)] for _ in range(3)] for _ in range(2))
    one[0][4:7], other[1][:2], other[2][3] = [None] * 3, [None] * 2, "unscored"  # type: ignore[list-item]

    def mean(groups: list[list[str]], places: list[int]) -> float:
        judged = [[group[place] for place in places if group[place] in ("complied", "refused")] for group in groups]
        return fmean(fmean(verdict == "complied" for verdict in group) for group in judged)

    found = paired_difference(one, other, "complied", seed=0)  # type: ignore[arg-type]
    # What one side has not scored counts on neither side.
    other[0][4:7], one[1][:2], one[2][3] = [None] * 3, [None] * 2, "unscored"  # type: ignore[list-item]
    everyone = list(range(30))
    assert found.value == pytest.approx(mean(one, everyone) - mean(other, everyone))
    differences = []
    for _ in range(4000):
        places = draw.choices(everyone, k=30)
        differences.append(mean(one, places) - mean(other, places))
    differences.sort()
    assert found.low == pytest.approx(differences[100], abs=0.02)
    assert found.high == pytest.approx(differences[3900], abs=0.02)


def test_pairing_takes_out_what_the_requests_have_in_common() -> None:
    """Hard requests are hard for both: the interval of the difference is narrower than that of either share."""
    one, other = verdicts("c" * 200 + "r" * 200), verdicts("c" * 220 + "r" * 180)
    found, alone = paired_difference([one], [other], "complied", seed=0), mean_rate([one], "complied", seed=0)
    assert found.value == pytest.approx(-0.05)
    assert None not in (found.low, found.high, alone.low, alone.high)
    assert found.high - found.low < (alone.high - alone.low) / 2  # type: ignore[operator]


def test_the_same_verdicts_differ_by_nothing_but_not_surely() -> None:
    group = verdicts("crcrcrcrcr")
    found = paired_difference([group], [group], "complied", seed=0)
    high = wilson(0, 10)[1]
    assert (found.value, found.low, found.high) == (0.0, pytest.approx(-high), pytest.approx(high))


def test_one_request_that_differs_says_no_more_than_none() -> None:
    upper, (low, high) = wilson(0, 200)[1], wilson(1, 200)
    for base in ("r" * 200, "c" * 100 + "r" * 100):
        same, less = verdicts(base), verdicts(base[:-1] + "c")
        none = paired_difference([same], [same], "complied", seed=0)
        assert (none.low, none.high) == (pytest.approx(-upper), pytest.approx(upper))
        one = paired_difference([less], [same], "complied", seed=0)
        assert one.value == pytest.approx(1 / 200)
        assert one.low == pytest.approx(1 / 200 - math.hypot(1 / 200 - low, upper))
        assert one.high == pytest.approx(high)
        turned = paired_difference([same], [less], "complied", seed=0)
        assert turned.low == pytest.approx(-high)
        assert turned.high == pytest.approx(math.hypot(1 / 200 - low, upper) - 1 / 200)


@pytest.mark.parametrize(
    ("first", "second", "requests"),
    [(0.0, 0.0, 50), (0.02, 0.0, 200), (0.005, 0.02, 200), (0.05, 0.01, 60), (0.05, 0.05, 100), (0.03, 0.0, 60)],
)
def test_intervals_of_rare_differences_hold_the_truth(
    first: float, second: float, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    draw, times, held = numpy.random.default_rng(0), 300, 0
    for number in range(times):
        sides = [verdicts("".join("rc"[int(hit)] for hit in draw.random(requests) < rate)) for rate in (first, second)]
        found = paired_difference([sides[0]], [sides[1]], "complied", number)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= first - second <= found.high
    assert held >= 0.95 * times


def test_a_difference_needs_judged_answers_of_the_same_requests() -> None:
    assert paired_difference([verdicts("uu")], [verdicts("rc")], "complied", seed=0).value is None
    with pytest.raises(ValueError, match="same requests"):
        paired_difference([verdicts("rc")], [verdicts("rcr")], "complied", seed=0)
    with pytest.raises(ValueError, match="come in pairs"):
        paired_difference([verdicts("rc")], [verdicts("rc"), verdicts("rc")], "complied", seed=0)


def test_an_answer_that_one_side_could_not_judge_counts_on_neither() -> None:
    """Both sides agree on every request that both have scored, so nothing differs between them."""
    one, other = verdicts("ccrrcu"), verdicts("curuuc")
    found = paired_difference([one], [other], "complied", seed=0)
    high = wilson(0, 2)[1]
    assert (found.value, found.low, found.high) == (0.0, pytest.approx(-high), pytest.approx(high))
    ids = [str(place) for place in range(6)]
    paired = compare_verdicts(by_request(ids, other), by_request(ids, one))
    assert paired.difference == found


def test_sides_that_share_no_judged_request_have_no_difference() -> None:
    assert paired_difference([verdicts("cu")], [verdicts("uc")], "complied", seed=0).value is None


def test_row_carries_the_rate_and_its_names() -> None:
    names = {
        "stage": "evaluate",
        "subject": "tuned",
        "condition": "after",
        "prompts": "harmful",
        "attack": "direct",
        "defense": "safetuning",
        "judge": "refusal",
        "metric": "attack success",
    }
    assert row(Rate(0.5, 0.2, 0.8, 6, 1), **names) == Row(**names, value=0.5, low=0.2, high=0.8, n=6, unscored=1)


def test_share_is_the_rate_of_what_is_true() -> None:
    assert share([True, False, None, True]) == rate(verdicts("cruc"), "complied")


def test_mean_has_a_bootstrap_interval() -> None:
    generator = random.Random(0)
    values = [generator.gauss(5, 2) for _ in range(200)]
    found = mean([*values, None], seed=1)
    assert found.value == pytest.approx(fmean(values))
    assert (found.n, found.unscored) == (200, 1)
    # The normal interval, which 200 values are enough for.
    half = Z * math.sqrt(sum((value - fmean(values)) ** 2 for value in values)) / 200
    assert found.low == pytest.approx(fmean(values) - half, abs=half / 5)
    assert found.high == pytest.approx(fmean(values) + half, abs=half / 5)
    assert mean([*values, None], seed=1) == found


def test_mean_of_nothing_and_of_one() -> None:
    assert mean([], seed=0) == Rate(None, None, None, 0, 0)
    assert mean([None], seed=0) == Rate(None, None, None, 0, 1)
    assert mean([3.0], seed=0) == Rate(3.0, None, None, 1, 0)


@pytest.mark.parametrize("value", [1.0, 5.5, 10.0])
def test_equal_values_within_bounds_are_not_certain(value: float) -> None:
    found = mean([value] * 8, seed=0, bounds=(1.0, 10.0))
    half = 9 * wilson(0, 8)[1]
    assert found.value == value
    assert found.low == pytest.approx(max(1.0, value - half))
    assert found.high == pytest.approx(min(10.0, value + half))


@pytest.mark.parametrize(("gained", "lost", "same"), [(0, 0, 4), (5, 0, 2), (3, 2, 0), (7, 1, 9)])
def test_mcnemar_is_the_binomial_tail_of_discordant_pairs(gained: int, lost: int, same: int) -> None:
    first = [True] * gained + [False] * lost + [True] * same
    second = [False] * gained + [True] * lost + [True] * same
    total = gained + lost
    tail = sum(comb(total, k) for k in range(min(gained, lost) + 1)) / 2**total
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(second, first) == mcnemar(first, second)


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [2.5, 2.5, None]])
def test_equal_values_have_an_interval_without_width(values: list[float | None]) -> None:
    found = mean(values, seed=0)
    assert found.low == found.value == found.high == values[0]
