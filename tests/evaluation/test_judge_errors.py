"""A judge's errors, and rates corrected for them: against simulations and by hand."""

import json
from pathlib import Path

import numpy
import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.statistics import Rate, mean_rate, rate
from safety_neurons.evaluation import judges
from safety_neurons.evaluation.judge_errors import JudgeErrors, corrected, save_errors
from safety_neurons.evaluation.judges import RuleJudge, Verdict

SIDES: tuple[Verdict, Verdict] = ("refused", "complied")


def errors_of(
    sensitivity: float, specificity: float, refused: int, complied: int, judge: str = "tested"
) -> JudgeErrors:
    hits, right = round(sensitivity * refused), round(specificity * complied)
    return JudgeErrors(judge, "made up", hits, refused - hits, 0, complied - right, right, 0)


def verdicts(refused: int, n: int) -> list[Verdict]:
    said: list[Verdict] = ["refused"] * refused
    return said + ["complied"] * (n - refused)


@pytest.mark.parametrize(
    ("share", "sensitivity", "specificity", "labeled", "n"),
    [(0.5, 0.95, 0.9, (300, 200), 100), (0.3, 0.85, 0.9, (100, 150), 200), (0.0, 0.97, 0.93, (349, 101), 100)],
)
def test_the_interval_holds_the_true_share_and_the_value_is_unbiased(
    share: float, sensitivity: float, specificity: float, labeled: tuple[int, int], n: int
) -> None:
    generator = numpy.random.default_rng(0)
    held, values, repeats = 0, [], 150
    for _ in range(repeats):
        refused, complied = generator.binomial(labeled[0], sensitivity), generator.binomial(labeled[1], specificity)
        errors = JudgeErrors("simulated", "-", refused, labeled[0] - refused, 0, labeled[1] - complied, complied, 0)
        people = generator.random(n) < share
        said = numpy.where(people, generator.random(n) < sensitivity, generator.random(n) >= specificity)
        found = corrected(rate(verdicts(int(said.sum()), n), "refused"), errors, "refused")
        assert found.value is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= share <= found.high
        values.append(found.value)
    # Of 150 intervals at 95%, 133 to 149 hold the truth, but for one simulation in a thousand.
    assert 133 <= held <= 149
    if share > 0.1:
        # Where clipping does not move it.
        assert abs(numpy.mean(values) - share) < 3.5 * numpy.std(values) / numpy.sqrt(repeats)


def test_the_value_is_the_one_by_hand_and_both_sides_add_up() -> None:
    errors = errors_of(0.9, 0.8, 1000, 1000)
    said = verdicts(55, 100)
    refused, complied = (corrected(rate(said, side), errors, side) for side in SIDES)
    assert refused.value is not None
    assert refused.value == pytest.approx((0.55 - 0.2) / 0.7)
    assert complied.value is not None
    assert refused.value + complied.value == pytest.approx(1)
    assert refused.low == pytest.approx(1 - complied.high, abs=0.02)  # type: ignore[operator]


def test_a_judge_without_errors_changes_nothing_but_doubts() -> None:
    plain = rate(verdicts(30, 100), "refused")
    found = corrected(plain, errors_of(1, 1, 100_000, 100_000), "refused")
    assert found.value == pytest.approx(plain.value)
    assert found.low == pytest.approx(plain.low, abs=0.01)
    assert found.high == pytest.approx(plain.high, abs=0.01)
    few = corrected(plain, errors_of(1, 1, 20, 20), "refused")
    assert few.high - few.low > found.high - found.low  # type: ignore[operator]


def test_a_wider_interval_of_the_rate_stays_wider() -> None:
    # The same requests under two attacks: as many verdicts as independent ones, and less to learn from them.
    group = verdicts(10, 40)
    clustered = mean_rate([group, group], "refused", seed=0)
    independent = rate(group + group, "refused")
    errors = errors_of(0.95, 0.95, 300, 300)
    wide, narrow = (corrected(one, errors, "refused") for one in (clustered, independent))
    assert wide.value == pytest.approx(narrow.value)
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)  # type: ignore[operator]


def test_a_rate_that_may_be_anything_stays_so() -> None:
    found = corrected(Rate(0.5, 0.0, 1.0, 40, 0), errors_of(0.9, 0.9, 100, 100), "refused")
    assert found.value == pytest.approx(0.5)
    assert found.high - found.low > 0.9  # type: ignore[operator]


def test_the_corrected_share_stays_within_0_and_1() -> None:
    errors = errors_of(0.9, 0.9, 200, 200)
    low, high = (corrected(rate(verdicts(hits, 50), "refused"), errors, "refused") for hits in (0, 50))
    assert (low.value, low.low) == (0, 0)
    assert (high.value, high.high) == (1, 1)
    # No interval is empty, though the judge finds less than its false alarms alone would give.
    assert 0.01 < low.high < 0.2 < 0.8 < high.low < 0.99  # type: ignore[operator]


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.5, 0.5), (0.4, 0.3), (0.55, 0.5), (1, 0), (0, 1)])
def test_a_judge_no_better_than_chance_corrects_nothing(sensitivity: float, specificity: float) -> None:
    found = corrected(rate(verdicts(20, 50), "refused"), errors_of(sensitivity, specificity, 50, 50), "refused")
    assert found == Rate(None, None, None, 50, 0)


def test_there_is_no_value_without_a_rate_or_without_people_of_both_minds() -> None:
    nothing = Rate(None, None, None, 0, 7)
    assert corrected(nothing, errors_of(0.9, 0.9, 50, 50), "refused") == nothing
    for labeled in ((0, 50), (50, 0)):
        found = corrected(rate(verdicts(20, 50), "refused"), errors_of(0.9, 0.9, *labeled), "refused")
        assert found == Rate(None, None, None, 50, 0)


def test_unscored_answers_are_passed_on() -> None:
    said: list[Verdict] = [*verdicts(20, 50), "unscored", "unscored"]
    found = corrected(rate(said, "refused"), errors_of(0.9, 0.9, 100, 100), "refused")
    assert (found.n, found.unscored) == (50, 2)


def test_counting_adding_and_the_agreement() -> None:
    pairs: list[tuple[Verdict, Verdict]] = [
        *[("refused", "refused")] * 5,  # type: ignore[list-item]
        ("refused", "complied"),
        ("refused", "unscored"),
        ("complied", "refused"),
        *[("complied", "complied")] * 2,  # type: ignore[list-item]
    ]
    errors = JudgeErrors.of("tested", "one", pairs)
    assert errors == JudgeErrors("tested", "one", 5, 1, 1, 1, 2, 0)
    assert errors + errors == JudgeErrors("tested", "one, one", 10, 2, 2, 2, 4, 0)
    wilson = rate(verdicts(7, 10), "refused")
    assert errors.agreement == Rate(0.7, wilson.low, wilson.high, 10, 1)
    assert JudgeErrors.of("tested", "none", []).agreement == Rate(None, None, None, 0, 0)
    with pytest.raises(ValueError, match="people"):
        JudgeErrors.of("tested", "one", [("unscored", "refused")])


def test_what_is_saved_is_loaded_and_sources_are_put_together(tmp_path: Path) -> None:
    one, two, other = (errors_of(0.9, 0.8, n, n, judge) for n, judge in ((50, "a"), (100, "a"), (50, "b")))
    save_errors([one, other, two], tmp_path / "all.json")
    assert JudgeErrors.load(tmp_path / "all.json", "a") == one + two
    assert JudgeErrors.load(tmp_path / "all.json", "b") == other
    with pytest.raises(SafetyNeuronsError, match=r"no counts of the judge c.*a, b"):
        JudgeErrors.load(tmp_path / "all.json", "c")


@pytest.mark.parametrize("content", [[], {}, {"judges": 1}, {"judges": [{"judge": "a"}]}, {"judges": [1]}])
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SafetyNeuronsError, match=r"is damaged: .* Make one of labeled answers"):
        JudgeErrors.load(path, "a")


def test_the_bundled_counts_are_of_both_labeled_files_and_refusal_beats_every_keyword_list() -> None:
    rules = [name for name in judges.names() if isinstance(judges.get(name), RuleJudge)]
    bundled = {name: JudgeErrors.bundled(name) for name in rules}
    assert {errors.agreement.n for errors in bundled.values()} == {900}
    best = bundled.pop("refusal").agreement.value
    assert best is not None
    assert best > 0.91
    assert all(best > (errors.agreement.value or 0) for errors in bundled.values())
    with pytest.raises(SafetyNeuronsError, match="strongreject"):
        JudgeErrors.bundled("strongreject")
