"""Fitting a guard, and its file: the detector of the layers that decide, the same decisions when it is read again."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safety_neurons.calibration.config import CalibrationConfig
from safety_neurons.calibration.detector import fit_detector, last_token_activations
from safety_neurons.calibration.guard import Guard, fit_guard, guard
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, Provenance

KNOWN = 5
BORDERLINE = ["ab", "Hello there.", "A longer text, padded.", "How do I wrap a present?", "Good morning"]
Prompts = list[str]


def neuron_set(model: ChatModel, layers: tuple[int, ...] = (0, 1, 2)) -> NeuronSet:
    """Random neurons of some layers, one of each site on both sides, with random directions."""
    generator = torch.Generator().manual_seed(0)
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    # Enough for some to be in each expert.
    drawn = [
        torch.randperm(hook_point.width, generator=generator)[: 9 * hook_point.blocks]
        for hook_point in model.hook_points
    ]
    drawn = [
        found if hook_point.layer in layers else found[:0]
        for found, hook_point in zip(drawn, model.hook_points, strict=True)
    ]
    rejection = tuple(found[: len(found) // 2 + 1].sort().values for found in drawn)
    conformity = tuple(found[len(found) // 2 :].sort().values for found in drawn)
    means = [tuple(torch.randn(KNOWN, width, generator=generator) * 0.5 for width in widths) for _ in range(2)]
    provenance = Provenance(model.name, model.identity, "by hand", 1.0, "layer", 0, (1,) * len(widths), 1)
    numbers = tuple(hook_point.layer for hook_point in model.hook_points)
    return NeuronSet(rejection, conformity, widths, numbers, provenance, Directions(*means))


def fit(
    model: ChatModel,
    harmful: Prompts,
    benign: Prompts,
    neurons: NeuronSet | None = None,
    calibration: CalibrationConfig = CalibrationConfig(),
    **options: Any,
) -> Guard:
    options = {"false_positive_rate": 0.2, "generated_tokens": calibration.generated_tokens} | options
    found = neuron_set(model) if neurons is None else neurons
    return fit_guard(model, found, harmful, benign, BORDERLINE, calibration=calibration, **options)


def guarded(model: ChatModel, fitted: Guard, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """The scores, and the raw logits of three greedy tokens."""
    options: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with guard(model, fitted) as decisions:
        output = model.model.generate(**model.encode([model.render(prompt) for prompt in prompts]), **options)
    return decisions.scores, torch.stack(output.logits, 1)


@pytest.mark.parametrize(
    "overrides",
    [
        CalibrationConfig(),
        CalibrationConfig(
            subset="conformity",
            prompt_positions="all",
            generated_tokens="all",
            direction="pooled",
            edit="clamp",
            keep_norm=True,
        ),
        CalibrationConfig(prompt_positions="template", generated_tokens=2, layers=(1, 2)),
    ],
)
def test_a_saved_guard_decides_and_calibrates_as_before(
    one_of_each: ChatModel, harmful: Prompts, benign: Prompts, tmp_path: Path, overrides: CalibrationConfig
) -> None:
    fitted = fit(one_of_each, harmful, benign, calibration=overrides, alpha=1.7, layer=1)
    paths = [tmp_path / name for name in "abc"]
    fitted.save(paths[0])
    fitted.save(paths[1])
    Guard.load(paths[0]).save(paths[2])
    assert len({path.read_bytes() for path in paths}) == 1
    loaded = Guard.load(str(paths[2]))
    for name in ("layer", "alpha", "calibration", "threshold", "false_positive_rate"):
        assert getattr(loaded, name) == getattr(fitted, name)
    assert (loaded.detector.auroc, loaded.detector.penalty) == (fitted.detector.auroc, fitted.detector.penalty)
    assert loaded.neurons.provenance == fitted.neurons.provenance
    prompts = [harmful[0], benign[0], *BORDERLINE]
    for before, after in zip(*(guarded(one_of_each, one, prompts) for one in (fitted, loaded)), strict=True):
        assert torch.equal(before, after)


def test_whatever_is_no_guard_is_an_error(model: ChatModel, harmful: Prompts, benign: Prompts, tmp_path: Path) -> None:
    fitted, path = fit(model, harmful, benign), tmp_path / "guard.safetensors"
    fitted.save(path)
    whole = path.read_bytes()
    makers: list[Callable[[Path], object]] = [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"no")]
    makers += [lambda path: path.write_bytes(whole[:200]), lambda path: path.write_bytes(whole[:-3])]
    makers += [fitted.neurons.save, lambda path: fitted.neurons.save(path.with_name("neurons"), path)]
    for metadata in (None, {"neurons": "{}"}, {"neurons": "[]"}, {"neurons": "5"}, {"neurons": "no"}):
        makers.append(functools.partial(save_file, {"rejection.0": torch.zeros(2)}, metadata=metadata))
    for make in makers:
        make(path)
        with pytest.raises(SafetyNeuronsError, match=r"guard\.safetensors"):
            Guard.load(path)
    with pytest.raises(SafetyNeuronsError, match="missing"):
        Guard.load(tmp_path / "missing")


def test_other_rates_have_other_thresholds_and_too_small_ones_are_errors(
    model: ChatModel, harmful: Prompts, benign: Prompts
) -> None:
    fitted = fit(model, harmful, benign)
    fitted = replace(fitted, detector=replace(fitted.detector, ordinary=torch.arange(9).float()))
    rates = (0.1, 0.2, 0.5, 0.9)
    assert [fitted.at(rate).threshold for rate in rates] == [8, 7, 4, 0]
    assert all(replace(fitted.at(rate), false_positive_rate=0.2) == fitted for rate in rates)
    for rate in (0.05, 0.0, 1.0):
        with pytest.raises(SafetyNeuronsError, match=r"false.positive.rate"):
            fitted.at(rate)


def test_fitting_is_fitting_a_detector_to_the_last_tokens_of_the_layers_before(
    one_of_each: ChatModel, harmful: Prompts, benign: Prompts
) -> None:
    model, neurons = one_of_each, neuron_set(one_of_each)
    sets = [[model.render(prompt) for prompt in prompts] for prompts in (harmful, benign, BORDERLINE)]
    for layer in (0, 1):
        chosen = [
            found if hook_point.layer <= layer else found[:0]
            for found, hook_point in zip(neurons.both, model.hook_points, strict=True)
        ]
        expected = fit_detector(*(last_token_activations(model, chosen, texts, 1) for texts in sets))
        fitted = fit(model, harmful, benign, layer=layer)
        torch.testing.assert_close(fitted.detector.weight, expected.weight, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(fitted.detector.ordinary, expected.ordinary, rtol=1e-3, atol=1e-3)
        assert (fitted.layer, len(fitted.detector.ordinary)) == (layer, len(benign))
        assert (fitted.scores(model, harmful) > fitted.threshold).all()
        assert (fitted.scores(model, benign) > fitted.threshold).sum() <= 1


def test_the_earliest_layer_that_separates_decides(model: ChatModel, harmful: Prompts, benign: Prompts) -> None:
    def chosen(layers: tuple[int, ...] = (0, 1, 2)) -> int:
        return fit_guard(model, neuron_set(model, layers), harmful, benign, false_positive_rate=0.2).layer

    assert (chosen(), chosen((1, 2))) == (0, 1)
    # Without the first layer's attention its last tokens are all the same.
    with torch.no_grad():
        model.model.get_submodule("model.layers.0.self_attn.o_proj").get_parameter("weight").zero_()
    assert chosen() == 1


def test_a_guard_with_the_templates_positions_needs_no_tokenizer(
    model: ChatModel, harmful: Prompts, benign: Prompts
) -> None:
    overrides = CalibrationConfig(prompt_positions="template")
    fitted = fit(model, harmful, benign, calibration=overrides)
    assert fitted.calibration == CalibrationConfig(prompt_positions=model.template_tail)
    with guard(model.model, fitted) as decisions:
        model.model.generate(**model.encode([model.render(harmful[0])]), max_new_tokens=2)
    assert decisions.flagged.tolist() == [True]


def test_a_guard_that_cannot_decide_is_an_error(model: ChatModel, harmful: Prompts, benign: Prompts) -> None:
    for layer in (0, 2):
        with pytest.raises(SafetyNeuronsError, match=f"layer {layer}.*layers 1 to 2"):
            fit(model, harmful, benign, neuron_set(model, (1, 2)), layer=layer)
    for few in ((harmful[:4], benign), (harmful, benign[:4])):
        with pytest.raises(SafetyNeuronsError, match="at least 5"):
            fit(model, *few)
    for rate in (0.0, 1.0, 0.1):
        with pytest.raises(SafetyNeuronsError, match=r"false.positive.rate"):
            fit(model, harmful, benign, false_positive_rate=rate)
    with pytest.raises(SafetyNeuronsError, match="have no directions"):
        fit(model, harmful, benign, replace(neuron_set(model), directions=None))


@pytest.mark.parametrize("layers", [(), (1,)])
def test_a_guard_without_neurons_to_decide_and_others_to_act_is_an_error(
    model: ChatModel, harmful: Prompts, benign: Prompts, layers: tuple[int, ...]
) -> None:
    for layer in (None, 1):
        with pytest.raises(SafetyNeuronsError, match="at least two layers"):
            fit(model, harmful, benign, neuron_set(model, layers), layer=layer)


@pytest.mark.parametrize("options", [{"layer": 9}, {"calibration": CalibrationConfig(prompt_positions=KNOWN + 1)}])
def test_a_guard_that_could_never_be_opened_is_an_error_before_it_is_fitted(
    model: ChatModel, harmful: Prompts, benign: Prompts, options: dict[str, Any]
) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"layer 9|6\."):
        fit(model, harmful, benign, **options)
