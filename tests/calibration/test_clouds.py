"""The two clouds of a tiny model: each number again by hand, from activations that no hook of the library gave."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from builders.quick import find
from safety_neurons.calibration import clouds as clouds_module
from safety_neurons.calibration.clouds import plane, read_clouds, separability
from safety_neurons.calibration.config import CalibrationConfig, Toward
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet

Activations = Callable[[ChatModel, Tensor], list[tuple[Tensor, Tensor]]]
ALPHAS: dict[Toward, float] = {"conformity": 2.0, "rejection": 1.5}
POSITIONS = 3
TEST = {
    "harmful": [f"Say how to harm neighbor {number}." for number in range(5)],
    "benign": [f"Say which soup {number} is good, please." for number in range(4)],
}


@pytest.fixture
def neurons(model: ChatModel, harmful: list[str], benign: list[str]) -> NeuronSet:
    return find(model, harmful, benign, percent=25, positions=POSITIONS, scope="layer")


def read(model: ChatModel, neurons: NeuronSet, **options: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {
        "alphas": ALPHAS,
        "config": CalibrationConfig(prompt_positions=POSITIONS),
        "batch_size": 3,
    } | options
    return read_clouds(model, neurons, neurons.random_like(1), TEST, **given)


@contextlib.contextmanager
def pushed(model: ChatModel, neurons: NeuronSet, toward: Toward) -> Iterator[None]:
    """The differences added before the write matrices of one sequence, without the library's hooks."""
    directions = neurons.directions
    assert directions is not None
    sign = 1 if toward == "conformity" else -1
    handles = []
    for hook_point, chosen, harmful, benign in zip(
        model.hook_points, neurons.both, directions.harmful, directions.benign, strict=True
    ):

        def add(
            _module: nn.Module,
            args: tuple[Tensor, ...],
            chosen: Tensor = chosen,
            shift: Tensor = sign * ALPHAS[toward] * (benign - harmful),
        ) -> tuple[Tensor, ...]:
            changed = args[0].clone()
            for back in range(1, POSITIONS + 1):
                changed[0, -back, chosen] += shift[-back, chosen]
            return (changed,)

        handles.append(model.model.get_submodule(hook_point.name).register_forward_pre_hook(add))
    yield
    for handle in handles:
        handle.remove()


def by_hand(model: ChatModel, neurons: NeuronSet, naive: Activations, side: str, push: bool) -> list[numpy.ndarray]:
    """The chosen neurons' activations at the last token, one prompt after the other: per site [prompts, neurons]."""
    toward: Toward = "conformity" if side == "harmful" else "rejection"
    found = []
    for text in TEST[side]:
        tokens = model.encode([model.render(text)])["input_ids"]
        with pushed(model, neurons, toward) if push else contextlib.nullcontext():
            found.append([values[-1] for values, _ in naive(model, tokens)])
    return [
        torch.stack([one[hook_point][own] for one in found]).double().numpy()
        for hook_point, own in enumerate(neurons.both)
    ]


def test_entries_are_those_by_hand(model: ChatModel, neurons: NeuronSet, naive_activations: Activations) -> None:
    entries = read(model, neurons)
    assert [entry["layer"] for entry in entries] == [0, 1, 2, None]
    by_name = {
        name + ("_calibrated" if push else ""): by_hand(model, neurons, naive_activations, name, push)
        for name in TEST
        for push in (False, True)
    }
    random = neurons.random_like(1)
    control = {name: by_hand(model, random, naive_activations, name, False) for name in TEST}
    for entry in entries:
        hook_points = [0, 1, 2] if entry["layer"] is None else [entry["layer"]]
        own = {
            name: numpy.hstack([values[hook_point] for hook_point in hook_points]) for name, values in by_name.items()
        }
        assert entry["neurons"] == own["harmful"].shape[1]
        scores = {name: own_scores(values, neurons, hook_points) for name, values in own.items()}
        assert entry["auroc"]["value"] == pytest.approx(ordered(scores["harmful"], scores["benign"]))
        others = [
            own_scores(numpy.hstack([control[name][hook_point] for hook_point in hook_points]), random, hook_points)
            for name in TEST
        ]
        assert entry["auroc_random"]["value"] == pytest.approx(ordered(*others))
        for name, values in scores.items():
            assert entry["harmful_half"][name] == pytest.approx(sum(values > 0) / len(values))
        shares, points = principal(own)
        assert entry["explained"] == pytest.approx(shares, abs=1e-4)
        for name, expected in points.items():
            got = numpy.array([entry["points"][name]["x"], entry["points"][name]["y"]]).T
            # Three digits are kept.
            assert got == pytest.approx(expected, rel=6e-3, abs=1e-4), name


def own_scores(values: numpy.ndarray, neurons: NeuronSet, hook_points: list[int]) -> numpy.ndarray:
    assert neurons.directions is not None
    sides = [
        numpy.concatenate(
            [side[hook_point][-1][neurons.both[hook_point]].double().numpy() for hook_point in hook_points]
        )
        for side in (neurons.directions.harmful, neurons.directions.benign)
    ]
    return numpy.array([numpy.dot(row - (sides[0] + sides[1]) / 2, sides[0] - sides[1]) for row in values])


def ordered(harmful: numpy.ndarray, benign: numpy.ndarray) -> float:
    pairs = [1.0 if one > other else 0.5 if one == other else 0.0 for one in harmful for other in benign]
    return sum(pairs) / len(pairs)


def principal(clouds: dict[str, numpy.ndarray]) -> tuple[list[float], dict[str, numpy.ndarray]]:
    """By the eigenvectors of the covariance of the prompts that were not pushed."""
    base = numpy.vstack([clouds["harmful"], clouds["benign"]])
    values, vectors = numpy.linalg.eigh(numpy.cov(base.T).reshape(base.shape[1], -1))
    axes = vectors[:, ::-1][:, :2]
    shares = [*(values[::-1][:2] / values.sum()), 0.0][:2]
    axes = axes * numpy.sign((clouds["harmful"].mean(0) - clouds["benign"].mean(0)) @ axes)
    points = {name: (cloud - base.mean(0)) @ axes for name, cloud in clouds.items()}
    return shares, points


def some_clouds(prompts: int, neurons: int) -> dict[str, numpy.ndarray]:
    drawn = numpy.random.default_rng(prompts)
    names = ("harmful", "benign", "harmful_calibrated", "benign_calibrated")
    return {name: drawn.normal(number, 1, (prompts, neurons)) for number, name in enumerate(names)}


@pytest.mark.parametrize("size", [(3, 20), (30, 4), (9, 2)], ids=str)
def test_plane_is_that_of_the_covariance(size: tuple[int, int]) -> None:
    clouds = some_clouds(*size)
    shares, points = plane(clouds)
    expected_shares, expected = principal(clouds)
    assert shares == pytest.approx(expected_shares)
    for name, cloud in points.items():
        assert cloud == pytest.approx(expected[name])


def test_single_neuron_has_one_axis() -> None:
    clouds = some_clouds(5, 1)
    shares, points = plane(clouds)
    assert shares == (1.0, 0.0)
    assert all((cloud[:, 1] == 0).all() for cloud in points.values())
    assert points["harmful"][:, 0].mean() > points["benign"][:, 0].mean()
    assert plane({name: numpy.ones((2, 3)) for name in clouds})[0] == (0.0, 0.0)


@pytest.mark.parametrize("flips", [(1, -1), (-1, 1), (-1, -1)])
def test_signs_of_the_decomposition_do_not_matter(flips: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    clouds = some_clouds(6, 9)
    shares, points = plane(clouds)
    original = numpy.linalg.svd

    def flipped(matrix: numpy.ndarray, full_matrices: bool) -> tuple[Any, Any, Any]:
        left, lengths, right = original(matrix, full_matrices=full_matrices)
        signs = numpy.array([*flips, *[1] * (len(lengths) - 2)])
        return left * signs, lengths, right * signs[:, None]

    monkeypatch.setattr(clouds_module.numpy.linalg, "svd", flipped)
    again_shares, again = plane(clouds)
    assert again_shares == shares
    assert all((again[name] == cloud).all() for name, cloud in points.items())
    assert points["harmful"].mean(0)[0] > points["benign"].mean(0)[0]


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "tied"])
def test_separability_is_counted_by_hand(ties: bool) -> None:
    drawn = numpy.random.default_rng(0)
    harmful, benign = drawn.normal(1, 1, 30), drawn.normal(0, 1, 20)
    if ties:
        harmful, benign = harmful.round(), benign.round()
    found = separability(harmful, benign, 0)
    assert found["value"] == pytest.approx(ordered(harmful, benign))
    samples = [ordered(drawn.choice(harmful, 30), drawn.choice(benign, 20)) for _ in range(400)]
    assert (found["low"], found["high"]) == pytest.approx(numpy.quantile(samples, [0.025, 0.975]), abs=0.03)
    assert separability(benign, harmful, 0)["value"] == pytest.approx(1 - found["value"])
    assert separability(harmful, harmful - 99, 0) == pytest.approx({"value": 1, "low": 1, "high": 1})


def test_same_again_and_without_a_push_nothing_moves(
    one_of_each: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    neurons = find(one_of_each, harmful, benign, percent=25, positions=POSITIONS, scope="layer")
    still: dict[Toward, float] = {"conformity": 0.0, "rejection": 0.0}
    entries = read(one_of_each, neurons, alphas=still)
    assert entries == read(one_of_each, neurons, alphas=still)
    for entry in entries:
        for side in TEST:
            assert entry["points"][f"{side}_calibrated"] == entry["points"][side]
            assert entry["harmful_half"][f"{side}_calibrated"] == entry["harmful_half"][side]
    moved = read(one_of_each, neurons)
    assert [entry["points"]["harmful"] for entry in moved] == [entry["points"]["harmful"] for entry in entries]
    assert moved != entries


def test_planes_of_many_layers_are_those_with_the_most_neurons(
    model: ChatModel, neurons: NeuronSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clouds_module, "MOST_PLANES", 1)
    entries = read(model, neurons)
    drawn = [entry["layer"] for entry in entries if entry["points"]]
    most = max(entries[:-1], key=lambda entry: entry["neurons"])
    assert drawn == [most["layer"], None]
    assert all(0 <= entry["auroc"]["value"] <= 1 for entry in entries)


def test_activations_that_are_no_numbers_are_told(model: ChatModel, neurons: NeuronSet) -> None:
    with torch.no_grad():
        model.model.model.layers[1].mlp.up_proj.weight.fill_(float("inf"))
    with pytest.raises(SafetyNeuronsError, match="finite"):
        read(model, neurons)
