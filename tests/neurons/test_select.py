"""Selection, against Python's own sorting."""

import pytest
import torch
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.neurons.find import select, top_percent

WIDTHS = [40, 25, 60]
LAYERS = [0, 1, 2]


def random_scores(seed: int, low: int = 0, high: int = 12) -> list[Tensor]:
    """Whole numbers, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(low, high, (width,), generator=generator).float() for width in WIDTHS]


def best(pairs: list[tuple[float, int, int]], percent: float) -> set[tuple[int, int]]:
    """(layer, neuron) of the best k percent; of equals the earlier ones."""
    count = max(1, round(len(pairs) * percent / 100))
    return {(layer, index) for score, layer, index in sorted(pairs, key=lambda pair: -pair[0])[:count] if score >= 0}


def naive(scores: list[Tensor], percent: float, scope: str) -> set[tuple[int, int]]:
    triples = [
        [(score, layer, index) for index, score in enumerate(values.tolist())] for layer, values in enumerate(scores)
    ]
    if scope == "layer":
        return set().union(*(best(layer, percent) for layer in triples))
    return best([triple for layer in triples for triple in layer], percent)


def members(masks: list[Tensor]) -> set[tuple[int, int]]:
    assert [len(mask) for mask in masks] == WIDTHS
    assert all(mask.dtype == torch.bool for mask in masks)
    return {(layer, index) for layer, mask in enumerate(masks) for index in mask.nonzero().flatten().tolist()}


@pytest.mark.parametrize("scope", ["layer", "model"])
@pytest.mark.parametrize("percent", [0.01, 3, 10, 50, 100])
@pytest.mark.parametrize("seed", range(3))
def test_top_percent(seed: int, percent: float, scope: str) -> None:
    scores = random_scores(seed)
    assert members(top_percent(scores, percent, scope, LAYERS)) == naive(scores, percent, scope)


@pytest.mark.parametrize("percent", [0.01, 10, 50])
@pytest.mark.parametrize("layers", [[0, 0, 1], [3, 5, 3], [7, 7, 7]])
def test_hook_points_of_a_layer_share_its_budget(percent: float, layers: list[int]) -> None:
    """Whatever the order in which they come."""
    scores = random_scores(4, high=1000)
    chosen = members(top_percent(scores, percent, "layer", layers))
    for layer in set(layers):
        mine = [hook_point for hook_point in range(3) if layers[hook_point] == layer]
        triples = [
            (score, hook_point, index) for hook_point in mine for index, score in enumerate(scores[hook_point].tolist())
        ]
        assert {pair for pair in chosen if pair[0] in mine} == best(triples, percent)


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_a_budget_however_small_is_at_least_one_neuron(scope: str) -> None:
    chosen = members(top_percent(random_scores(0), 1e-6, scope, LAYERS))
    assert len(chosen) == (len(LAYERS) if scope == "layer" else 1)


@pytest.mark.parametrize("scope", ["layer", "model"])
@pytest.mark.parametrize("percent", [10, 100])
def test_negative_scores_are_never_chosen(percent: float, scope: str) -> None:
    scores = random_scores(1, low=-12, high=3)
    chosen = members(top_percent(scores, percent, scope, LAYERS))
    assert chosen == naive(scores, percent, scope)
    assert all(scores[layer][index] >= 0 for layer, index in chosen)


@pytest.mark.parametrize("percent", [0, -1, 100.1, float("nan")])
def test_a_budget_that_is_none_is_an_error(percent: float) -> None:
    with pytest.raises(SafetyNeuronsError, match="percent cannot be"):
        top_percent(random_scores(0), percent, "model", LAYERS)


def test_a_scope_that_is_none_is_an_error() -> None:
    """Not the other scope in silence."""
    with pytest.raises(SafetyNeuronsError, match="layers"):
        top_percent(random_scores(0), 1, "layers", LAYERS)


@pytest.mark.parametrize("scope", ["layer", "model"])
@pytest.mark.parametrize("percent", [5, 40])
@pytest.mark.parametrize("seed", range(3))
def test_each_side_loses_what_the_other_has_too(seed: int, percent: float, scope: str) -> None:
    harmful, benign = random_scores(seed), random_scores(seed + 100)
    mine, theirs = naive(harmful, percent, scope), naive(benign, percent, scope)
    rejection, conformity = select(harmful, benign, percent, scope, contrastive=False, layers=LAYERS)
    assert members(rejection) == mine - theirs
    assert members(conformity) == theirs - mine
    assert members(rejection)


def test_the_same_scores_on_both_sides_leave_nothing() -> None:
    rejection, conformity = select(random_scores(0), random_scores(0), 20, "model", contrastive=False, layers=LAYERS)
    assert members(rejection) == members(conformity) == set()


@pytest.mark.parametrize("scope", ["layer", "model"])
@pytest.mark.parametrize("seed", range(3))
def test_contrastive_scores_share_one_budget(seed: int, scope: str) -> None:
    values, generator = random_scores(seed), torch.Generator().manual_seed(seed)
    sides = [torch.rand(width, generator=generator) < 0.5 for width in WIDTHS]
    harmful = [value.where(side, -1.0) for value, side in zip(values, sides, strict=True)]
    benign = [value.where(~side, -1.0) for value, side in zip(values, sides, strict=True)]
    chosen = naive(values, 20, scope)
    rejection, conformity = select(harmful, benign, 20, scope, contrastive=True, layers=LAYERS)
    assert members(rejection) == {(layer, index) for layer, index in chosen if sides[layer][index]}
    assert members(conformity) == chosen - members(rejection)
    assert members(conformity)


def test_contrastive_neurons_that_are_out_on_both_sides_are_never_chosen() -> None:
    out = [torch.full((width,), -1.0) for width in WIDTHS]
    rejection, conformity = select(out, out, 50, "model", contrastive=True, layers=LAYERS)
    assert members(rejection) == members(conformity) == set()
