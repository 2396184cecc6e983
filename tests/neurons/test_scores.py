"""Every score, neuron by neuron, against its formula."""

import math

import pytest
import torch
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.neurons import scores
from safety_neurons.neurons.capture import ActivationStatistics
from safety_neurons.neurons.scores import Evidence

WIDTHS = (11, 7)


def statistics(seed: int, prompts: int) -> ActivationStatistics:
    generator = torch.Generator().manual_seed(seed)

    def values() -> list[Tensor]:
        return [torch.randn(width, generator=generator) for width in WIDTHS]

    mean = values()
    return ActivationStatistics(
        prompts=prompts,
        # In a mixture of experts each neuron has seen another number of tokens.
        count=[torch.randint(0, 90, (width,), generator=generator).float() for width in WIDTHS],
        mean=mean,
        mean_absolute=[value.abs() + 0.1 for value in mean],
        mean_square=[value.square() + 0.2 for value in mean],
        variance=[torch.rand(width, generator=generator) for width in WIDTHS],
        top_share=[torch.rand(width, generator=generator) for width in WIDTHS],
        by_position=None,
    )


@pytest.fixture
def evidence() -> Evidence:
    generator = torch.Generator().manual_seed(3)
    vectors = [torch.randn(width, 5, generator=generator) for width in WIDTHS]
    return Evidence(
        harmful=statistics(1, prompts=30),
        benign=statistics(2, prompts=10),
        write_norm_1=[layer.abs().sum(1) for layer in vectors],
        write_norm_2=[layer.square().sum(1).sqrt() for layer in vectors],
        seed=5,
    )


def neurons() -> list[tuple[int, int]]:
    return [(layer, index) for layer, width in enumerate(WIDTHS) for index in range(width)]


def compute(name: str, evidence: Evidence) -> tuple[list[list[float]], list[list[float]]]:
    harmful, benign = scores.get(name).compute(evidence)
    assert [len(layer) for layer in harmful] == [len(layer) for layer in benign] == list(WIDTHS)
    return [layer.tolist() for layer in harmful], [layer.tolist() for layer in benign]


def check_sides(name: str, evidence: Evidence, expected: dict[tuple[int, int], float]) -> None:
    """A contrastive score is on the side where the mean activation is larger in size; the other side has -1."""
    harmful, benign = compute(name, evidence)
    for (layer, index), value in expected.items():
        rejects = abs(float(evidence.harmful.mean[layer][index])) >= abs(float(evidence.benign.mean[layer][index]))
        mine, other = (harmful, benign) if rejects else (benign, harmful)
        assert mine[layer][index] == pytest.approx(value, rel=1e-5)
        assert other[layer][index] == -1


def difference(evidence: Evidence, layer: int, index: int) -> float:
    return abs(float(evidence.harmful.mean[layer][index]) - float(evidence.benign.mean[layer][index]))


def test_the_scores_that_there_are() -> None:
    forward_only = {"contrast", "effect-size", "magnitude", "random", "wanda", "write-contrast"}
    assert set(scores.names()) == forward_only | {"change", "gradient", "removal"}
    # Scores that need no more than the statistics cost no more than one reading.
    measuring = {name for name in scores.names() if scores.get(name).measure or scores.get(name).measure_pass}
    assert set(scores.names()) - measuring == forward_only
    assert all(scores.get(name).name == name for name in scores.names())


def test_write_contrast(evidence: Evidence) -> None:
    expected = {
        (layer, index): difference(evidence, layer, index) * float(evidence.write_norm_2[layer][index])
        for layer, index in neurons()
    }
    check_sides("write-contrast", evidence, expected)


def test_contrast_drops_neurons_that_are_busy_on_every_prompt(evidence: Evidence) -> None:
    expected, dropped = {}, 0
    for layer, index in neurons():
        # 30 harmful and 10 benign prompts.
        busy = 0.75 * float(evidence.harmful.top_share[layer][index]) + 0.25 * float(
            evidence.benign.top_share[layer][index]
        )
        dropped += busy >= 0.8
        expected[layer, index] = -1.0 if busy >= 0.8 else difference(evidence, layer, index)
    assert 0 < dropped < len(expected)
    check_sides("contrast", evidence, expected)


def test_magnitude(evidence: Evidence) -> None:
    harmful, benign = compute("magnitude", evidence)
    for layer, index in neurons():
        norm = float(evidence.write_norm_2[layer][index])
        for found, side in ((harmful, evidence.harmful), (benign, evidence.benign)):
            assert found[layer][index] == pytest.approx(float(side.mean_absolute[layer][index]) * norm, rel=1e-5)


def test_wanda(evidence: Evidence) -> None:
    harmful, benign = compute("wanda", evidence)
    for layer, index in neurons():
        norm = float(evidence.write_norm_1[layer][index])
        for found, side in ((harmful, evidence.harmful), (benign, evidence.benign)):
            # The 2-norm over all its tokens, from the mean of the squares.
            size = math.sqrt(float(side.mean_square[layer][index]) * float(side.count[layer][index]))
            assert found[layer][index] == pytest.approx(size * norm, rel=1e-5)


def test_random_follows_the_seed_and_not_the_activations(evidence: Evidence) -> None:
    def values(seed: int, harmful: ActivationStatistics) -> list[Tensor]:
        chosen = Evidence(harmful, evidence.benign, evidence.write_norm_1, evidence.write_norm_2, seed)
        return [torch.maximum(*pair) for pair in zip(*scores.get("random").compute(chosen), strict=True)]

    first = torch.cat(values(5, evidence.harmful))
    assert torch.equal(first, torch.cat(values(5, statistics(9, 3))))
    assert not torch.equal(first, torch.cat(values(6, evidence.harmful)))
    assert first.min() >= 0
    assert len(first.unique()) == len(first)


def test_an_unknown_score_is_an_error_with_near_names() -> None:
    with pytest.raises(SafetyNeuronsError, match=r"no score called 'write_contrast'.*Did you mean write-contrast"):
        scores.get("write_contrast")
    with pytest.raises(SafetyNeuronsError, match=r"Known: change, contrast, effect-size, gradient, magnitude, random"):
        scores.get("xyzzy")
