"""Cohen's d and the controlled counts, against computations on the raw numbers."""

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy.stats import ttest_ind
from torch import Tensor

from builders.quick import find
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.capture import ActivationStatistics
from safety_neurons.neurons.find import significant
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.neurons.scores import Evidence, get

WIDTHS = (60, 40)


def samples(seed: int, tokens: int, shifted: int = 0) -> list[Tensor]:
    """Per site activations [tokens, neurons]; the first `shifted` neurons of each are two deviations higher."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(tokens, width, generator=generator) * 3 + 1 for width in WIDTHS]
    for hook_point in found:
        hook_point[:, :shifted] += 6
    return found


def summed_up(hook_points: list[Tensor]) -> ActivationStatistics:
    return ActivationStatistics(
        prompts=len(hook_points[0]),
        count=[torch.full((hook_point.shape[1],), float(len(hook_point))) for hook_point in hook_points],
        mean=[hook_point.mean(0) for hook_point in hook_points],
        mean_absolute=[hook_point.abs().mean(0) for hook_point in hook_points],
        mean_square=[hook_point.square().mean(0) for hook_point in hook_points],
        variance=[hook_point.var(0, correction=0) for hook_point in hook_points],
        top_share=[torch.zeros(hook_point.shape[1]) for hook_point in hook_points],
        by_position=None,
    )


def scored(harmful: ActivationStatistics, benign: ActivationStatistics) -> tuple[list[Tensor], list[Tensor]]:
    ones = [torch.ones(width) for width in WIDTHS]
    return get("effect-size").compute(Evidence(harmful, benign, ones, ones, 0))


def test_it_is_the_difference_of_the_means_in_pooled_deviations() -> None:
    on_harmful, on_benign = samples(0, 12), samples(1, 7)
    harmful, benign = scored(summed_up(on_harmful), summed_up(on_benign))
    for hook_point in range(len(WIDTHS)):
        for neuron in range(WIDTHS[hook_point]):
            first, second = on_harmful[hook_point][:, neuron].tolist(), on_benign[hook_point][:, neuron].tolist()
            pooled = (11 * statistics.variance(first) + 6 * statistics.variance(second)) / 17
            d = abs(statistics.mean(first) - statistics.mean(second)) / pooled**0.5
            rejects = abs(statistics.mean(first)) >= abs(statistics.mean(second))
            mine, other = (harmful, benign) if rejects else (benign, harmful)
            assert float(mine[hook_point][neuron]) == pytest.approx(d, rel=1e-4)
            assert float(other[hook_point][neuron]) == -1


@pytest.mark.parametrize("spoil", ["no tokens", "one token", "constant", "nearly constant"])
def test_neurons_of_which_nothing_is_known_have_no_effect(spoil: str) -> None:
    on_harmful, on_benign = summed_up(samples(0, 12)), summed_up(samples(1, 7))
    for side in (on_harmful, on_benign):
        if "constant" in spoil:
            side.mean[0][3] = 100.0
            side.variance[0][3] = 0.0 if spoil == "constant" else 1e-11
    if spoil == "nearly constant":
        on_benign.mean[0][3] = 100.00001
    if "token" in spoil:
        for value in (on_benign.count, on_benign.mean, on_benign.variance):
            value[0][3] = 0.0
        if spoil == "one token":
            on_harmful.count[0][3] = on_benign.count[0][3] = 1.0
            on_harmful.variance[0][3] = 0.0
    harmful, benign = scored(on_harmful, on_benign)
    assert max(float(harmful[0][3]), float(benign[0][3])) == 0
    assert all(bool(hook_point.isfinite().all()) for hook_point in (*harmful, *benign))
    masks = significant(on_harmful, on_benign)
    assert not (masks[0][3] and spoil != "nearly constant")


def by_hand(on_harmful: list[Tensor], on_benign: list[Tensor], rate: float) -> set[int]:
    """Welch's test neuron by neuron, and Benjamini and Hochberg's step-up rule in a loop."""
    values = [
        float(ttest_ind(first.double().numpy(), second.double().numpy(), equal_var=False).pvalue)
        for mine, theirs in zip(on_harmful, on_benign, strict=True)
        for first, second in zip(mine.T, theirs.T, strict=True)
    ]
    order = sorted(range(len(values)), key=lambda neuron: values[neuron])
    kept = 0
    for rank, neuron in enumerate(order, start=1):
        if values[neuron] <= rank / len(values) * rate:
            kept = rank
    return set(order[:kept])


@pytest.mark.parametrize("shifted", [0, 5, 30])
def test_significant_neurons_are_those_of_the_step_up_rule(shifted: int) -> None:
    on_harmful, on_benign = samples(4, 20, shifted), samples(5, 14)
    masks = significant(summed_up(on_harmful), summed_up(on_benign))
    found = set(torch.cat(masks).nonzero().flatten().tolist())
    assert found == by_hand(on_harmful, on_benign, 0.05)
    assert [len(mask) for mask in masks] == list(WIDTHS)
    assert len(found) >= shifted


def test_the_counts_stay_with_the_neurons(
    make_model: Callable[..., ChatModel], harmful: list[str], benign: list[str], tmp_path: Path
) -> None:
    model = make_model()
    found = find(model, harmful, benign, score="effect-size", percent=10)
    counts = found.provenance.significant
    assert counts is not None
    assert len(counts) == len(model.hook_points)
    # The prompts differ in their words, so their last tokens differ clearly in a model with random weights.
    assert 0 < sum(counts) <= 3 * 48
    found.save(tmp_path / "neurons.safetensors")
    assert NeuronSet.load(tmp_path / "neurons.safetensors").provenance == found.provenance


def test_dependent_tokens_and_other_scores_are_not_tested(
    model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    assert find(model, harmful, benign, score="effect-size", last_tokens=2).provenance.significant is None
    assert find(model, harmful, benign, score="effect-size", tokens="prompt").provenance.significant is None
    assert find(model, harmful, benign, score="write-contrast").provenance.significant is None
