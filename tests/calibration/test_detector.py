"""The detector: scikit-learn's own predictions, nothing scored by what was learned from it, and rates that hold."""

from fractions import Fraction

import numpy
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from safety_neurons.calibration.detector import PENALTIES, Detector, check_rate, fit_detector
from safety_neurons.core.errors import SafetyNeuronsError

FEATURES = 12


def draw(count: int, seed: int, shift: float = 0.0, features: int = FEATURES) -> Tensor:
    """Prompts whose features have very different sizes and means; one is the same for all."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, features, generator=generator) + shift * torch.linspace(-1, 1, features)
    values = values * torch.logspace(-2, 2, features) + torch.linspace(-5, 50, features)
    values[:, 3] = 7.0
    return values


def three_sets() -> tuple[Tensor, Tensor, Tensor]:
    return draw(31, 0, 0.6), draw(43, 1), draw(17, 2, 0.2)


def pipeline(penalty: float) -> Pipeline:
    regression = LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000, tol=1e-8)
    return make_pipeline(StandardScaler(), regression)


def joined(harmful: Tensor, *safe: Tensor) -> tuple[numpy.ndarray, numpy.ndarray]:
    values = torch.cat([*safe, harmful])
    return values.double().numpy(), numpy.r_[numpy.zeros(len(values) - len(harmful)), numpy.ones(len(harmful))]


def out_of_fold(features: numpy.ndarray, labels: numpy.ndarray, penalty: float) -> numpy.ndarray:
    scores = numpy.full(len(labels), numpy.nan)
    for learned, left in StratifiedKFold(5, shuffle=True, random_state=0).split(features, labels):
        scores[left] = pipeline(penalty).fit(features[learned], labels[learned]).decision_function(features[left])
    return scores


def with_ordinary(scores: Tensor) -> Detector:
    return Detector(torch.ones(1), 0.0, scores.sort().values, 1.0, 1e-2)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_scores_of_raw_features_are_scikit_learns_decision_function(penalty: float) -> None:
    harmful, ordinary, borderline = three_sets()
    fitted = fit_detector(harmful, ordinary, borderline, penalties=(penalty,))
    expected = pipeline(penalty).fit(*joined(harmful, ordinary, borderline))
    fresh = torch.cat([draw(20, 5), draw(20, 6, 0.6)])
    scores = fitted.scores(fresh)
    assert (scores.dtype, fitted.weight.dtype, fitted.penalty) == (torch.float32, torch.float32, penalty)
    decided = torch.from_numpy(expected.decision_function(fresh.double().numpy())).float()
    torch.testing.assert_close(scores, decided, rtol=1e-3, atol=1e-3)
    assert torch.equal(fitted.scores(fresh.half()), fitted.scores(fresh.half().float()))


def test_another_unit_of_a_feature_changes_its_weight_and_no_score() -> None:
    harmful, ordinary, _ = three_sets()
    units = torch.logspace(2, -2, FEATURES)
    one, other = fit_detector(harmful, ordinary), fit_detector(harmful * units, ordinary * units)
    torch.testing.assert_close(other.weight * units, one.weight, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(other.scores(harmful * units), one.scores(harmful), rtol=1e-2, atol=1e-3)


def test_the_auroc_and_the_ordinary_scores_are_those_of_folds_that_were_not_learnt() -> None:
    harmful, ordinary, borderline = three_sets()
    fitted = fit_detector(harmful, ordinary, borderline)
    features, labels = joined(harmful, ordinary, borderline)
    aurocs = {penalty: roc_auc_score(labels, out_of_fold(features, labels, penalty)) for penalty in PENALTIES}
    assert aurocs[fitted.penalty] == max(aurocs.values())
    assert fitted.auroc == pytest.approx(aurocs[fitted.penalty])
    # Of the ordinary prompts alone, without the borderline ones.
    expected = torch.from_numpy(numpy.sort(out_of_fold(features, labels, fitted.penalty)[: len(ordinary)])).float()
    torch.testing.assert_close(fitted.ordinary, expected, rtol=1e-3, atol=1e-3)


def test_pure_noise_is_not_detected_however_well_it_is_learnt() -> None:
    aurocs, learned = [], []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        harmful, ordinary = torch.randn(2, 60, 200, generator=generator)
        fitted = fit_detector(harmful, ordinary)
        aurocs.append(fitted.auroc)
        features, labels = joined(harmful, ordinary)
        learned.append(roc_auc_score(labels, fitted.scores(torch.from_numpy(features)).numpy()))
    assert abs(float(numpy.mean(aurocs)) - 0.5) < 0.08
    assert max(aurocs) < 0.7
    assert min(learned) > 0.95


def test_clear_differences_are_detected_with_the_strongest_penalty() -> None:
    for penalties in (PENALTIES, PENALTIES[::-1]):
        fitted = fit_detector(draw(20, 0, 8.0), draw(20, 1), penalties=penalties)
        assert (fitted.auroc, fitted.penalty) == (1.0, min(PENALTIES))
        assert float(fitted.scores(draw(50, 2, 8.0)).min()) > float(fitted.scores(draw(50, 3)).max())


def test_borderline_prompts_count_as_safe_but_not_for_the_threshold() -> None:
    harmful, ordinary = draw(40, 0, 1.0), draw(40, 1)
    # They are harmful in one direction and differ in none other from ordinary prompts.
    borderline = draw(40, 2)
    borderline[:, 0] = draw(40, 3, 1.0)[:, 0]
    without, fitted = fit_detector(harmful, ordinary), fit_detector(harmful, ordinary, borderline)
    fresh = draw(200, 4)
    fresh[:, 0] = draw(200, 5, 1.0)[:, 0]
    assert len(fitted.ordinary) == len(without.ordinary) == len(ordinary)
    assert (fitted.scores(fresh) > 0).float().mean() < (without.scores(fresh) > 0).float().mean()
    empty = fit_detector(harmful, ordinary, borderline[:0])
    assert torch.equal(empty.weight, without.weight)
    assert torch.equal(empty.ordinary, without.ordinary)


def test_fitting_twice_gives_the_same_bits() -> None:
    one, other = fit_detector(*three_sets()), fit_detector(*three_sets())
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.ordinary, other.ordinary)
    assert (one.bias, one.auroc, one.penalty) == (other.bias, other.auroc, other.penalty)


@pytest.mark.parametrize("count", [1, 5, 19, 99, 100, 457])
def test_the_threshold_is_the_lowest_score_above_which_the_share_lies(count: int) -> None:
    scores = torch.randperm(count, generator=torch.Generator().manual_seed(count)).float()
    fitted = with_ordinary(scores)
    for rate in ("0.01", "0.05", "0.1", "0.2", "0.25", "0.3", "0.5", "0.7", "0.95", "0.99"):
        exact = Fraction(rate)
        # A new prompt is as likely to fall into each of the count + 1 gaps between the scores.
        good = [score for score in sorted(scores.tolist()) if (scores > score).sum().item() + 1 <= exact * (count + 1)]
        if good:
            assert fitted.threshold(float(rate)) == good[0]
        else:
            with pytest.raises(SafetyNeuronsError, match="at least"):
                fitted.threshold(float(rate))


def test_a_higher_rate_never_has_a_higher_threshold() -> None:
    fitted = with_ordinary(torch.randn(200, generator=torch.Generator().manual_seed(0)))
    thresholds = [fitted.threshold(rate / 1000) for rate in range(5, 1000)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > thresholds[-1]


def test_rates_next_to_all_have_the_lowest_threshold() -> None:
    for rate in (0.999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12):
        assert with_ordinary(torch.arange(50).float()).threshold(rate) == 0


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_the_rate_holds_on_fresh_ordinary_prompts(rate: float) -> None:
    flagged = []
    for seed in range(30):
        fitted = fit_detector(draw(30, 3 * seed, 0.6), draw(60, 3 * seed + 1), penalties=(1e-2,))
        fresh = fitted.scores(draw(2000, 3 * seed + 2))
        flagged.append(float((fresh > fitted.threshold(rate)).float().mean()))
    assert rate / 3 < float(numpy.mean(flagged)) < rate + 0.02


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, 0.0, 1.0, float("nan"), float("inf")])
def test_a_rate_that_is_no_share_is_an_error(rate: float) -> None:
    for ask in (with_ordinary(torch.zeros(500)).threshold, lambda rate: check_rate(rate, 500)):
        with pytest.raises(SafetyNeuronsError, match="above 0 and below 1"):
            ask(rate)


def test_too_small_a_rate_is_an_error_that_says_how_many_prompts_it_needs() -> None:
    for rate, needed in ((0.01, 99), (0.05, 19), (0.001, 999), (0.3, 3)):
        with pytest.raises(SafetyNeuronsError, match=rf"{rate}.* {needed} .*there are {needed - 1}\."):
            with_ordinary(torch.zeros(needed - 1)).threshold(rate)
        check_rate(rate, needed)


def test_one_of_all_prompts_is_never_too_small_a_rate() -> None:
    for count in range(1, 200):
        scores = torch.arange(count).float()
        assert with_ordinary(scores).threshold(1 / (count + 1)) == count - 1


def test_too_few_prompts_or_no_features_are_errors() -> None:
    harmful, ordinary, borderline = three_sets()
    with pytest.raises(SafetyNeuronsError, match="no neuron"):
        fit_detector(harmful[:, :0], ordinary[:, :0])
    for few in ((harmful[:4], ordinary, borderline), (harmful, ordinary[:4], borderline), (harmful[:0], ordinary)):
        with pytest.raises(SafetyNeuronsError, match="at least 5"):
            fit_detector(*few)
    assert len(fit_detector(harmful[:5], ordinary[:5]).ordinary) == 5
