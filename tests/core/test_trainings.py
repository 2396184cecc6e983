"""Intervals over several trainings on the same requests: against simulated data, naive sums, and at the edges."""

from collections.abc import Sequence

import numpy
import pytest
from scipy.stats import t

from safety_neurons.core import statistics
from safety_neurons.core.statistics import Verdict, mean_rate, paired_difference
from safety_neurons.core.trainings import crossed_difference, crossed_rate

Groups = list[list[Verdict | None]]
ATTACKS = (-2.0, -3.0)
REQUESTS = 50


def verdicts(outcomes: "numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.bool_]]") -> list[Groups]:
    """Outcomes [trainings, attacks, requests] as verdicts."""
    return [[["complied" if hit else "refused" for hit in row] for row in one] for one in outcomes.tolist()]


def drawn(
    random: numpy.random.Generator, trainings: int, of_training: float, of_request: float, shift: float = 0.0
) -> list[Groups]:
    """Answers whose log-odds have a part of the attack, one of the training and one of the request."""
    parts = random.normal(0, of_training, (trainings, 1, 1)), random.normal(0, of_request, (1, 1, REQUESTS))
    odds = numpy.array(ATTACKS)[None, :, None] + shift + parts[0] + parts[1]
    return verdicts(random.random(odds.shape) < 1 / (1 + numpy.exp(-odds)))


def true_rate(random: numpy.random.Generator, of_training: float, of_request: float) -> float:
    """The mean over attacks, trainings and requests without end."""
    odds = numpy.array(ATTACKS)[:, None, None] + random.normal(0, of_training, (1, 2000, 1))
    return float((1 / (1 + numpy.exp(-(odds + random.normal(0, of_request, (1, 1, 2000)))))).mean())


@pytest.fixture
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 200)


@pytest.mark.usefixtures("_few_resamples")
@pytest.mark.parametrize(
    ("trainings", "of_training", "of_request"), [(3, 0.8, 1.0), (5, 0.8, 1.0), (3, 0.0, 1.5), (5, 0.0, 0.0)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(trainings: int, of_training: float, of_request: float) -> None:
    """Or more often, as the chance of single answers is counted twice."""
    random = numpy.random.default_rng(trainings)
    truth, times = true_rate(random, of_training, of_request), 80
    rates = differences = requests_alone = 0
    for number in range(times):
        one = drawn(random, trainings, of_training, of_request)
        found = crossed_rate(one, "complied", number)
        assert found.low is not None
        assert found.high is not None
        rates += found.low <= truth <= found.high
        pooled = mean_rate([group for groups in one for group in groups], "complied", number)
        assert pooled.low is not None
        assert pooled.high is not None
        requests_alone += pooled.low <= truth <= pooled.high
        # Both sides have the same true rate, and the same requests.
        both = drawn(random, 2 * trainings, of_training, of_request)
        change = crossed_difference(both[:trainings], both[trainings:], "complied", number)
        assert change.low is not None
        assert change.high is not None
        differences += change.low <= 0 <= change.high
    assert rates >= 0.9 * times
    assert differences >= 0.9 * times
    if of_training:
        assert requests_alone < 0.85 * times < rates, "an interval for requests alone does not hold other trainings"


def test_values_are_means_of_the_trainings() -> None:
    random = numpy.random.default_rng(1)
    ones, others = drawn(random, 4, 1.0, 1.0), drawn(random, 4, 1.0, 1.0)
    ones[1][0][3], ones[2][1][7] = "unscored", None

    def naive(groups: Groups) -> float:
        scored = [[one for one in group if one in ("complied", "refused")] for group in groups]
        return float(numpy.mean([group.count("complied") / len(group) for group in scored]))

    found = crossed_rate(ones, "complied", 0)
    assert found.value == pytest.approx(numpy.mean([naive(one) for one in ones]))
    assert (found.n, found.unscored) == (4 * 2 * REQUESTS - 2, 1)
    change = crossed_difference(ones, others, "complied", 0)
    # What one training of a pair has not scored counts in neither.
    others[1][0][3], others[2][1][7] = None, None
    assert change.value == pytest.approx(numpy.mean([naive(a) - naive(b) for a, b in zip(ones, others, strict=True)]))


def test_the_variance_is_that_of_requests_and_of_trainings() -> None:
    """Without noise of single answers: each training adds a share, each request is always or never answered."""
    hits = numpy.zeros((3, 1, 40), dtype=bool)
    for training, count in enumerate((4, 8, 12)):
        hits[training, 0, :count] = True
    change = crossed_difference(verdicts(hits), verdicts(numpy.zeros_like(hits)), "complied", 0)
    shares = hits.mean(axis=(1, 2))
    by_requests = hits.mean(axis=(0, 1)).var() / 40
    by_trainings = shares.var(ddof=1) / 3
    freedom = (by_requests + by_trainings) ** 2 / (by_requests**2 / 39 + by_trainings**2 / 2)
    half = t.ppf(0.975, freedom) * (by_requests + by_trainings) ** 0.5
    assert change.value == pytest.approx(0.2)
    assert change.high is not None
    assert change.high - 0.2 == pytest.approx(half, rel=0.05)


def test_one_training_has_the_interval_of_its_requests() -> None:
    one = drawn(numpy.random.default_rng(2), 1, 0.0, 1.0)
    found, known = crossed_rate(one, "complied", 0), mean_rate(one[0], "complied", 0)
    assert found.value == known.value
    assert (found.low, found.high) == (pytest.approx(known.low, abs=0.02), pytest.approx(known.high, abs=0.02))
    pair = drawn(numpy.random.default_rng(3), 1, 0.0, 1.0)
    change, paired = crossed_difference(one, pair, "complied", 0), paired_difference(one[0], pair[0], "complied", 0)
    assert change.value == paired.value
    assert (change.low, change.high) == (pytest.approx(paired.low, abs=0.02), pytest.approx(paired.high, abs=0.02))


def test_more_spread_between_trainings_is_a_wider_interval() -> None:
    def width(counts: Sequence[int]) -> float:
        hits = numpy.zeros((len(counts), 1, 60), dtype=bool)
        for training, count in enumerate(counts):
            hits[training, 0, :count] = True
        found = crossed_rate(verdicts(hits), "complied", 0)
        assert found.value == pytest.approx(0.2)
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    assert width((12, 12, 12)) < width((9, 12, 15)) < width((0, 12, 24))


@pytest.mark.parametrize("verdict", ["complied", "refused"])
def test_equal_verdicts_have_an_interval_that_depends_on_the_requests_alone(verdict: Verdict) -> None:
    same: Groups = [[verdict] * 30] * 2
    found = crossed_rate([same] * 4, "complied", 0)
    known = mean_rate(same, "complied", 0)
    assert (found.value, found.low, found.high) == (known.value, known.low, known.high)
    change = crossed_difference([same] * 4, [same] * 4, "complied", 0)
    assert change == paired_difference(same, same, "complied", 0)


def test_what_nobody_could_judge_has_no_rate() -> None:
    blank: Groups = [["unscored", "unscored"], ["refused", "complied"]]
    whole: Groups = [["refused", "complied"], ["refused", "complied"]]
    assert crossed_rate([whole, blank], "complied", 0).value is None
    assert crossed_difference([whole, blank], [whole, whole], "complied", 0).value is None


def test_an_answer_that_one_training_could_not_judge_counts_in_neither_of_its_pair() -> None:
    before: Groups = [["complied", "complied", "refused", "refused", "complied", "refused"]]
    after: list[Groups] = [
        [["complied", "unscored", "refused", "refused", "complied", "refused"]],
        [["unscored", "complied", "refused", None, "complied", "unscored"]],
    ]
    assert crossed_difference(after, [before, before], "complied", 0).value == 0.0


def test_one_request_that_differs_in_one_training_says_no_more_than_none() -> None:
    same: Groups = [["refused"] * 200]
    less: Groups = [[*same[0][:199], "complied"]]
    none, one = (crossed_difference([same, same, each], [same] * 3, "complied", 0) for each in (same, less))
    assert one.value == pytest.approx(1 / 600)
    assert None not in (none.low, none.high, one.low, one.high)
    assert one.high - one.low > none.high - none.low  # type: ignore[operator]
    assert one.low < 0 < one.value < one.high  # type: ignore[operator]


def test_trainings_that_do_not_pair_are_errors() -> None:
    one: Groups = [["refused", "complied"]]
    short: Groups = [["refused"]]
    with pytest.raises(ValueError, match="pairs"):
        crossed_difference([one, one], [one], "complied", 0)
    with pytest.raises(ValueError, match="requests"):
        crossed_difference([one, one], [short, short], "complied", 0)
    with pytest.raises(ValueError, match="requests"):
        crossed_rate([], "complied", 0)
    with pytest.raises(ValueError, match="requests"):
        crossed_rate([one, [*one, *one]], "complied", 0)
