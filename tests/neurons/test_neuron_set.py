"""The artifact: what is saved is what is loaded, and what its numbers mean."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, Provenance, sorted_indices

WIDTHS = (40, 30, 50)


def indices(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.fixture
def neurons() -> NeuronSet:
    generator = torch.Generator().manual_seed(0)
    harmful, benign = (tuple(torch.randn(5, width, generator=generator) for width in WIDTHS) for _ in range(2))
    return NeuronSet(
        rejection=(indices(1, 5, 30), indices(), indices(0, 49)),
        conformity=(indices(2), indices(7, 8, 9), indices()),
        widths=WIDTHS,
        layers=(0, 1, 2),
        provenance=Provenance("a model", "abc", "write-contrast", 0.5, "model", 3, (96, 96, 96), 20_000),
        directions=Directions(harmful, benign),
    )


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(mine, theirs) and mine.dtype == theirs.dtype for mine, theirs in zip(one, other, strict=True)
    )


def test_numbers(neurons: NeuronSet) -> None:
    assert len(neurons) == 9
    assert [layer.tolist() for layer in neurons.both] == [[1, 2, 5, 30], [7, 8, 9], [0, 49]]
    assert neurons.share_of_neurons == 9 / 120
    assert neurons.parameters == 9 * 96
    assert neurons.share_of_parameters == 9 * 96 / 20_000
    assert neurons.per_layer() == [(0, WIDTHS[0], 3, 1), (1, WIDTHS[1], 0, 3), (2, WIDTHS[2], 2, 0)]
    assert str(neurons) == (
        "9 neurons (7.50% of neurons, 4.32% of parameters): 5 rejection, 4 conformity, found by write-contrast"
    )


def test_two_sites_of_a_layer_count_together(neurons: NeuronSet) -> None:
    """Routed and shared experts; a site has its own number of weights per neuron."""
    provenance = dataclasses.replace(neurons.provenance, parameters_per_neuron=(96, 64, 10))
    mixture = dataclasses.replace(neurons, layers=(4, 6, 6), provenance=provenance)
    assert mixture.per_layer() == [(4, 40, 3, 1), (6, 80, 2, 3)]
    assert mixture.parameters == 4 * 96 + 3 * 64 + 2 * 10
    assert mixture.random_like(0).layers == (4, 6, 6)


def test_neurons_fit_a_model_of_the_same_shape(neurons: NeuronSet, make_model: Callable[..., ChatModel]) -> None:
    model = make_model("qwen2_moe")
    layers, widths = (0, 0, 1, 1, 2, 2), (64, 24) * 3
    empty = (indices(),) * 6
    provenance = dataclasses.replace(neurons.provenance, identity=model.identity)
    fitting = dataclasses.replace(
        neurons, rejection=empty, conformity=empty, layers=layers, widths=widths, provenance=provenance
    )
    fitting.check_fits(model)
    for other in (
        dataclasses.replace(fitting, layers=(0, 1, 1, 2, 2, 3)),
        dataclasses.replace(fitting, widths=(24, 64) * 3),
        dataclasses.replace(fitting, layers=layers[:4], widths=widths[:4]),
    ):
        with pytest.raises(SafetyNeuronsError, match="a model, whose layers have other widths"):
            other.check_fits(model)


def test_what_is_saved_is_loaded(neurons: NeuronSet, tmp_path: Path) -> None:
    path, directions = tmp_path / "neurons.safetensors", tmp_path / "directions.safetensors"
    assert neurons.directions is not None
    neurons.save(path, directions)
    loaded = NeuronSet.load(path)
    assert same(loaded.rejection, neurons.rejection)
    assert same(loaded.conformity, neurons.conformity)
    assert (loaded.widths, loaded.layers, loaded.directions) == (WIDTHS, (0, 1, 2), None)
    assert loaded.provenance == neurons.provenance

    complete = NeuronSet.load(path, directions)
    assert complete.directions is not None
    assert same(complete.directions.harmful, neurons.directions.harmful)
    assert same(complete.directions.benign, neurons.directions.benign)
    assert complete.directions.positions == 5


def test_the_same_set_is_the_same_file(neurons: NeuronSet, tmp_path: Path) -> None:
    """Byte for byte, so that a checksum tells whether neurons changed; the order of metadata must not vary."""
    contents = set()
    for number in range(12):
        neurons.save(tmp_path / str(number))
        contents.add((tmp_path / str(number)).read_bytes())
    assert len(contents) == 1


def test_views_of_larger_tensors_can_be_saved(neurons: NeuronSet, tmp_path: Path) -> None:
    big = torch.arange(150.0).reshape(3, 50)
    turned = Directions((big[:, :40], big[:, 10:40], big), (big[:, 5:45], big[:, :30], big + 1))
    paths = tmp_path / "neurons.safetensors", tmp_path / "directions.safetensors"
    dataclasses.replace(neurons, directions=turned).save(*paths)
    loaded = NeuronSet.load(*paths).directions
    assert loaded is not None
    assert same(loaded.harmful, turned.harmful)
    assert same(loaded.benign, turned.benign)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_file_is_an_error_that_says_how_to_make_it(neurons: NeuronSet, missing: int, tmp_path: Path) -> None:
    paths = tmp_path / "neurons.safetensors", tmp_path / "directions.safetensors"
    neurons.save(*paths)
    paths[missing].unlink()
    with pytest.raises(SafetyNeuronsError, match=f"{paths[missing].name} does not exist.*sn.find"):
        NeuronSet.load(*paths)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"weight": torch.zeros(3)}, None),
        ({"rejection.0": torch.zeros(3)}, {"widths": "[3]", "provenance": "{}"}),
        ({"rejection.0": torch.zeros(3)}, {"neurons": '{"widths": [3]}'}),
    ],
)
def test_another_safetensors_file_is_an_error(
    tensors: dict[str, Tensor], metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    """Also one of version 0.3, which has no digest."""
    path = tmp_path / "other.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(SafetyNeuronsError, match=r"other\.safetensors is not a neuron set of this version"):
        NeuronSet.load(path)


def test_a_neuron_set_that_contradicts_itself_is_not_written(neurons: NeuronSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different numbers of MLPs"):
        dataclasses.replace(neurons, widths=(*WIDTHS, 10), layers=(0, 1, 2, 3)).save(tmp_path / "neurons.safetensors")
    assert not list(tmp_path.iterdir())


def test_neurons_and_directions_are_not_taken_for_each_other(neurons: NeuronSet, tmp_path: Path) -> None:
    paths = tmp_path / "neurons.safetensors", tmp_path / "directions.safetensors"
    neurons.save(*paths)
    with pytest.raises(SafetyNeuronsError, match=r"neurons\.safetensors is not a directions file"):
        NeuronSet.load(paths[0], paths[0])
    with pytest.raises(SafetyNeuronsError, match=r"directions\.safetensors is not a neuron set"):
        NeuronSet.load(paths[1])


def test_directions_of_other_neurons_are_refused_with_both_models(neurons: NeuronSet, tmp_path: Path) -> None:
    """Of the same shape: nothing but the digest tells them apart."""
    other = dataclasses.replace(
        neurons, provenance=dataclasses.replace(neurons.provenance, model="another model", identity="xyz")
    )
    neurons.save(tmp_path / "neurons", tmp_path / "directions")
    other.save(tmp_path / "other", tmp_path / "other-directions")
    with pytest.raises(SafetyNeuronsError, match=r"other-directions .* another model \(xyz\).*, of a model \(abc\)"):
        NeuronSet.load(tmp_path / "neurons", tmp_path / "other-directions")


def test_neurons_of_other_weights_of_the_same_shape_are_refused_with_both_names(model: ChatModel) -> None:
    points = model.hook_points
    provenance = Provenance("elsewhere", "abc", "by hand", 1.0, "model", 0, (1,) * len(points), 100)
    widths, layers = tuple(point.width for point in points), tuple(point.layer for point in points)
    found = NeuronSet((indices(1),) * len(points), (indices(),) * len(points), widths, layers, provenance)
    with pytest.raises(SafetyNeuronsError, match=rf"elsewhere \(abc\), not in {model.name}"):
        found.check_fits(model)
    dataclasses.replace(found, provenance=dataclasses.replace(provenance, identity=model.identity)).check_fits(model)
    # Of a plain transformers model the weights are unknown.
    found.check_fits(dataclasses.replace(model, identity=""))


def test_random_neurons_are_as_many_others(neurons: NeuronSet) -> None:
    for seed in range(20):
        control = neurons.random_like(seed)
        assert control.per_layer() == neurons.per_layer()
        for found, drawn, width in zip(neurons.both, control.both, WIDTHS, strict=True):
            assert not set(found.tolist()) & set(drawn.tolist())
            assert len(drawn) == len(found)
            assert all(0 <= index < width for index in drawn.tolist())
        for side in (control.rejection, control.conformity):
            assert all(torch.equal(layer, layer.sort().values) for layer in side)
        assert (control.provenance.score, control.provenance.seed) == ("random", seed)
        assert control.directions is neurons.directions


def test_random_neurons_follow_the_seed_and_reach_every_neuron(neurons: NeuronSet) -> None:
    assert same(neurons.random_like(1).both, neurons.random_like(1).both)
    assert not same(neurons.random_like(1).both, neurons.random_like(2).both)
    drawn = {index for seed in range(200) for index in neurons.random_like(seed).both[0].tolist()}
    assert drawn == set(range(40)) - {1, 2, 5, 30}


def test_too_few_other_neurons_are_an_error(neurons: NeuronSet) -> None:
    """A control of fewer neurons than the found ones would flatter them."""
    most = dataclasses.replace(
        neurons, rejection=(torch.arange(30), *neurons.rejection[1:]), conformity=(indices(),) * 3
    )
    with pytest.raises(SafetyNeuronsError, match="random"):
        most.random_like(0)


def test_sorted_indices() -> None:
    masks = [torch.tensor([True, False, True]), torch.zeros(2, dtype=torch.bool)]
    assert same(sorted_indices(masks), (indices(0, 2), indices()))
