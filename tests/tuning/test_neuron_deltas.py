"""The neuron deltas are rows and columns of the base's weights, and a delta changes those and no other byte."""

import copy
import gc
import json
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import load
from safety_neurons.models.neurons.hook_points import DenseHookPoint
from safety_neurons.models.neurons.trace import decoder_layers
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, Provenance
from safety_neurons.tuning.delta import NeuronDelta, outside_digest
from safety_neurons.tuning.delta_model import DeltaModel
from safety_neurons.tuning.neuron_deltas import DeltaTensors, deltas_added, empty_delta

TEXTS = ["Hello there.", "A longer text, so that the others are padded.", "ab"]


def neuron_set(model: ChatModel, seed: int = 0) -> NeuronSet:
    """Random neurons, none in the second layer, one of them on both sides."""
    generator = torch.Generator().manual_seed(seed)
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    drawn = [torch.randperm(width, generator=generator)[: 7 if layer != 1 else 0] for layer, width in enumerate(widths)]
    each = tuple(hook_point.parameters_per_neuron for hook_point in model.hook_points)
    provenance = Provenance(model.name, model.identity, "by hand", 1.0, "layer", seed, each, model.parameters)
    return NeuronSet(
        tuple(layer[:4].sort().values for layer in drawn),
        tuple(layer[3:].sort().values for layer in drawn),
        widths,
        tuple(hook_point.layer for hook_point in model.hook_points),
        provenance,
        Directions(tuple(torch.zeros(2, width) for width in widths), tuple(torch.ones(2, width) for width in widths)),
    )


def random_delta(model: ChatModel, neurons: NeuronSet, seed: int = 0) -> DeltaTensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.2 for name, value in empty_delta(model, neurons).items()
    }


def with_biases(model: ChatModel) -> ChatModel:
    """Fresh models have biases of zero, which would hide mistakes with them."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def logits(model: ChatModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.model(**model.encode(TEXTS)).logits
    return found


def snapshot(model: ChatModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


def same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.contiguous().view(torch.uint8), other.view(torch.uint8))


def owned(model: ChatModel, neurons: NeuronSet) -> dict[str, Tensor]:
    """By parameter name: which entries belong to the neurons, marked entry by entry."""
    masks = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in model.model.named_parameters()}
    for hook_point, rejection, conformity in zip(model.hook_points, neurons.rejection, neurons.conformity, strict=True):
        assert isinstance(hook_point, DenseHookPoint)
        for neuron in {*rejection.tolist(), *conformity.tolist()}:
            mask = masks[f"{hook_point.name}.weight"]
            (mask if isinstance(hook_point.write, Conv1D) else mask.T)[neuron] = True
            for read in hook_point.reads:
                mask = masks[f"{read.name}.weight"]
                (mask.T if isinstance(read.module, Conv1D) else mask)[read.offset + neuron] = True
                if f"{read.name}.bias" in masks:
                    masks[f"{read.name}.bias"][read.offset + neuron] = True
    return masks


def test_zero_deltas_leave_the_logits(one_of_each_tunable: ChatModel) -> None:
    neurons = neuron_set(one_of_each_tunable)
    before = logits(one_of_each_tunable)
    with deltas_added(one_of_each_tunable, neurons, empty_delta(one_of_each_tunable, neurons)):
        assert torch.equal(logits(one_of_each_tunable), before)
    assert torch.equal(logits(one_of_each_tunable), before)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_oss"])
def test_deltas_are_computed_in_the_dtype_of_the_base(make_model: Callable[..., ChatModel], architecture: str) -> None:
    """The masters stay float32, and so do their gradients."""
    model = make_model(architecture)
    model.model.to(torch.bfloat16).requires_grad_(False)
    neurons = neuron_set(model)
    masters = {name: value.requires_grad_() for name, value in random_delta(model, neurons).items()}
    seen: set[torch.dtype] = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is functional.linear:
                seen.update(value.dtype for value in args if isinstance(value, Tensor))
            return function(*args, **(kwargs or {}))

    with deltas_added(model, neurons, masters), Watch():
        model.model(**model.encode(TEXTS)).logits.float().square().mean().backward()
    assert seen == {torch.bfloat16}
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in masters.values())
    assert any(value.grad.any() for value in masters.values() if value.grad is not None)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_oss"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_through_layers_that_are_run_again(
    make_model: Callable[..., ChatModel], architecture: str, reentrant: bool
) -> None:
    """Activation checkpointing runs each layer a second time, during the backward pass."""

    def gradients(again: bool) -> dict[str, Tensor]:
        model = make_model(
            architecture, **({"resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0} if architecture == "gpt2" else {})
        )
        model.model.requires_grad_(False)
        neurons = neuron_set(model)
        masters = {name: value.requires_grad_() for name, value in random_delta(model, neurons).items()}
        runs = []
        model.model.get_submodule(model.hook_points[0].name).register_forward_pre_hook(lambda *_: runs.append(1))
        if again:
            with warnings.catch_warnings():
                # Newer transformers call it activation checkpointing.
                warnings.simplefilter("ignore")
                model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.model.train()
            model.model.enable_input_require_grads()
        with deltas_added(model, neurons, masters):
            model.model(**model.encode(TEXTS), use_cache=False).logits.square().mean().backward()
        assert len(runs) == 1 + again
        return {name: value.grad for name, value in masters.items() if value.grad is not None}

    expected, found = gradients(again=False), gradients(again=True)
    assert expected.keys() == found.keys()
    assert len(found) > 4
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_added_deltas_are_changed_weights(tunable_model: ChatModel) -> None:
    with_biases(tunable_model)
    neurons = neuron_set(tunable_model)
    tensors = random_delta(tunable_model, neurons)
    before = logits(tunable_model)
    with deltas_added(tunable_model, neurons, tensors):
        added = logits(tunable_model)
    with NeuronDelta(neurons, tensors).apply(tunable_model):
        applied = logits(tunable_model)
    torch.testing.assert_close(added, applied, rtol=1e-3, atol=1e-3)
    assert float((applied - before).abs().max()) > 0.1
    assert torch.equal(logits(tunable_model), before)


@pytest.mark.parametrize(
    ("architecture", "reads", "fused"),
    [
        ("llama", ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"), False),
        ("phi3", ("model.layers.{}.mlp.gate_up_proj",), True),
        ("gpt2", ("transformer.h.{}.mlp.c_fc",), False),
        ("opt", ("model.decoder.layers.{}.fc1",), False),
    ],
)
def test_applied_weights_are_the_weights_by_name(
    make_model: Callable[..., ChatModel], architecture: str, reads: tuple[str, ...], fused: bool
) -> None:
    """Knowing each architecture's own names and orders, without what the library knows of them."""
    writes = {"gpt2": "transformer.h.{}.mlp.c_proj", "opt": "model.decoder.layers.{}.fc2"}
    model = make_model(architecture)
    neurons = neuron_set(model)
    tensors = random_delta(model, neurons)
    weights = snapshot(model)
    for layer, indices in enumerate(neurons.both):
        for place, neuron in enumerate(indices.tolist()):
            write = weights[writes.get(architecture, "model.layers.{}.mlp.down_proj").format(layer) + ".weight"]
            (write if architecture == "gpt2" else write.T)[neuron] += tensors[f"site{layer}_write"][place]
            modules = [(reads[0], 0), (reads[0], 48)] if fused else [(name, 0) for name in reads]
            for number, (name, offset) in enumerate(modules):
                read = weights[name.format(layer) + ".weight"]
                change = tensors[f"site{layer}_read{number}_weight"][place]
                (read.T if architecture == "gpt2" else read)[offset + neuron] += change
                if architecture in ("gpt2", "opt"):
                    weights[name.format(layer) + ".bias"][neuron] += tensors[f"site{layer}_read{number}_bias"][place]
    with NeuronDelta(neurons, tensors).apply(model):
        found = snapshot(model)
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)


def test_gradients_are_those_of_the_whole_weights(tunable_model: ChatModel) -> None:
    with_biases(tunable_model)
    neurons = neuron_set(tunable_model)
    ids = torch.tensor([[7, 9, 30, 41, 5, 66, 70, 8]])
    labels = torch.full((1, 8), -100)
    labels[0, 4:] = ids[0, 4:]

    unfrozen = copy.deepcopy(tunable_model.model).requires_grad_(True)
    output = unfrozen(input_ids=ids).logits
    loss = functional.cross_entropy(output[0, 3:-1], ids[0, 4:])
    loss.backward()
    whole = {name: value.grad for name, value in unfrozen.named_parameters()}

    tunable_model.model.requires_grad_(False)
    delta_model = DeltaModel(tunable_model, neurons)
    found = delta_model(ids, torch.ones_like(ids), labels[:, 4:])["loss"]
    found.backward()
    torch.testing.assert_close(found, loss, rtol=1e-4, atol=1e-5)

    compared = 0
    largest = 0.0
    for place, (hook_point, indices) in enumerate(zip(tunable_model.hook_points, neurons.both, strict=True)):
        if not len(indices):
            continue
        assert isinstance(hook_point, DenseHookPoint)
        parts: dict[str, Tensor] = {}
        gradient = whole[f"{hook_point.name}.weight"]
        assert gradient is not None
        parts["write"] = (gradient if isinstance(hook_point.write, Conv1D) else gradient.T)[indices]
        for number, read in enumerate(hook_point.reads):
            gradient = whole[f"{read.name}.weight"]
            assert gradient is not None
            rows = gradient.T if isinstance(read.module, Conv1D) else gradient
            parts[f"read{number}_weight"] = rows[indices + read.offset]
            bias = whole.get(f"{read.name}.bias")
            if bias is not None:
                parts[f"read{number}_bias"] = bias[indices + read.offset]
        for part, expected in parts.items():
            delta_gradient = delta_model.delta[f"site{place}_{part}"].grad
            assert delta_gradient is not None
            torch.testing.assert_close(delta_gradient, expected, rtol=1e-3, atol=1e-5, msg=f"{hook_point.name} {part}")
            largest = max(largest, float(expected.abs().max()))
            compared += 1
    assert compared == len(delta_model.delta)
    assert largest > 1e-3


def test_only_the_deltas_are_parameters(tunable_model: ChatModel) -> None:
    neurons = neuron_set(tunable_model)
    delta_model = DeltaModel(tunable_model, neurons)
    count = sum(parameter.numel() for parameter in delta_model.parameters())
    assert count == sum(int(mask.sum()) for mask in owned(tunable_model, neurons).values())
    assert count == NeuronDelta(neurons, delta_model.tensors()).parameters
    assert count == len(neurons) * tunable_model.hook_points[0].parameters_per_neuron
    assert all(parameter.dtype == torch.float32 for parameter in delta_model.parameters())


def test_applied_delta_changes_its_own_bytes_and_no_other(tunable_model: ChatModel) -> None:
    neurons = neuron_set(tunable_model)
    delta = NeuronDelta(neurons, random_delta(tunable_model, neurons))
    masks = owned(tunable_model, neurons)
    before = snapshot(tunable_model)
    names = {name for name, _ in tunable_model.model.named_parameters()}
    with delta.apply(tunable_model) as applied:
        assert applied is tunable_model
        during = snapshot(tunable_model)
        digest = outside_digest(tunable_model, neurons)
    after = snapshot(tunable_model)
    for name, value in before.items():
        changed = during[name] != value
        if name in names:
            assert torch.equal(changed, masks[name]), name
        else:
            # Buffers, and second names of tied weights.
            assert name not in masks or not masks[name].any()
            assert not changed.any(), name
        assert same_bytes(after[name], value), name
    assert digest == outside_digest(tunable_model, neurons)


def test_apply_restores_every_byte_after_an_exception(one_of_each_tunable: ChatModel) -> None:
    neurons = neuron_set(one_of_each_tunable)
    delta = NeuronDelta(neurons, random_delta(one_of_each_tunable, neurons))
    before = snapshot(one_of_each_tunable)
    with pytest.raises(RuntimeError, match="by the user"), delta.apply(one_of_each_tunable):
        raise RuntimeError("by the user")
    assert all(same_bytes(value, before[name]) for name, value in snapshot(one_of_each_tunable).items())


def test_apply_restores_what_it_changed_when_it_fails_half_way(model: ChatModel) -> None:
    neurons = neuron_set(model)
    tensors = random_delta(model, neurons)
    tensors["site2_read1_weight"] = torch.full_like(tensors["site2_read1_weight"], 1e38)
    model.model.half()
    before = snapshot(model)
    with pytest.raises(SafetyNeuronsError, match="too large"), NeuronDelta(neurons, tensors).apply(model):
        pass
    assert all(same_bytes(value, before[name]) for name, value in snapshot(model).items())


def test_applied_twice_is_applied_twice_and_restored(model: ChatModel) -> None:
    neurons = neuron_set(model)
    tensors = random_delta(model, neurons)
    delta = NeuronDelta(neurons, tensors)
    before = snapshot(model)
    with delta.apply(model), delta.apply(model):
        twice = logits(model)
    with NeuronDelta(neurons, {name: value * 2 for name, value in tensors.items()}).apply(model):
        torch.testing.assert_close(logits(model), twice, rtol=1e-4, atol=1e-4)
    assert all(same_bytes(value, before[name]) for name, value in snapshot(model).items())


def test_delta_stays_until_it_is_removed(one_of_each_tunable: ChatModel) -> None:
    model = one_of_each_tunable
    neurons = neuron_set(model)
    delta = NeuronDelta(neurons, random_delta(model, neurons))
    before, base = snapshot(model), logits(model)
    applied = delta.apply(model)
    assert not torch.equal(logits(model), base)
    with pytest.raises(SafetyNeuronsError, match="was made for"):
        delta.apply(replace(model, identity="another"))
    applied.remove()
    assert all(same_bytes(value, before[name]) for name, value in snapshot(model).items())
    second = delta.apply(model)
    tuned = logits(model)
    # What was removed already takes nothing away from what was applied since.
    applied.remove()
    assert torch.equal(logits(model), tuned)
    second.remove()
    second.remove()
    assert all(same_bytes(value, before[name]) for name, value in snapshot(model).items())


def test_deltas_are_removed_in_the_other_order(model: ChatModel) -> None:
    """Bytes that were saved below another delta would not be the base's."""
    neurons = neuron_set(model)
    before = snapshot(model)
    first, second = (NeuronDelta(neurons, random_delta(model, neurons, seed)).apply(model) for seed in (1, 2))
    both = logits(model)
    with pytest.raises(SafetyNeuronsError, match="Remove that one first"):
        first.remove()
    assert torch.equal(logits(model), both)
    second.remove()
    first.remove()
    assert all(same_bytes(value, before[name]) for name, value in snapshot(model).items())


def test_a_model_with_a_delta_in_it_is_not_kept_alive(make_model: Callable[..., ChatModel]) -> None:
    model = make_model()
    neurons = neuron_set(model)
    NeuronDelta(neurons, random_delta(model, neurons)).apply(model)
    network = weakref.ref(model.model)
    del model
    gc.collect()
    assert network() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_byte_of_a_smaller_dtype_is_restored(make_model: Callable[..., ChatModel], dtype: torch.dtype) -> None:
    model = make_model()
    model.model.to(dtype)
    neurons = neuron_set(model)
    before = snapshot(model)
    with NeuronDelta(neurons, random_delta(model, neurons)).apply(model):
        assert any(not torch.equal(value, before[name]) for name, value in snapshot(model).items())
    assert all(same_bytes(value, before[name]) for name, value in snapshot(model).items())


def test_incomplete_delta_is_refused(model: ChatModel) -> None:
    """A file that lost some tensors would change only half of each neuron."""
    neurons = neuron_set(model)
    tensors, before = random_delta(model, neurons), logits(model)
    del tensors["site2_read1_weight"]
    with pytest.raises(SafetyNeuronsError, match=r"incomplete: 1 .* first site2_read1_weight"):
        NeuronDelta(neurons, tensors).apply(model)
    assert torch.equal(logits(model), before)


def test_scaled_delta_is_so_much_larger(model: ChatModel) -> None:
    neurons = neuron_set(model)
    delta = NeuronDelta(neurons, random_delta(model, neurons))
    weights = snapshot(model)
    with delta.apply(model):
        whole = snapshot(model)
    with delta.scale(0.5).apply(model):
        for name, value in snapshot(model).items():
            expected = weights[name] + 0.5 * (whole[name] - weights[name])
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=name)
    with delta.scale(0).apply(model):
        assert all(torch.equal(value, weights[name]) for name, value in snapshot(model).items())
    assert delta.scale(2).neurons is delta.neurons
    for factor in (float("nan"), float("inf"), -0.5):
        with pytest.raises(SafetyNeuronsError, match=f"scaled by {factor}"):
            delta.scale(factor)


def unpacked(model: ChatModel, packed: ChatModel) -> ChatModel:
    """The model with the weights that the packed ones stand for."""
    with torch.no_grad():
        for name, module in packed.model.named_modules():
            if hasattr(module, "unpacked"):
                matrix: Any = model.model.get_submodule(name)
                matrix.weight.copy_(module.unpacked())
    return model


@pytest.mark.parametrize("architecture", ["llama", "phi3", "opt", "gemma3"])
def test_packed_weights_stay_packed_and_compute_as_if_they_were_changed(
    make_model: Callable[..., ChatModel], pack: Callable[[ChatModel], ChatModel], architecture: str
) -> None:
    model = pack(with_biases(make_model(architecture)))
    plain = unpacked(with_biases(make_model(architecture)), model)
    neurons = neuron_set(plain)
    delta = NeuronDelta(neurons, random_delta(plain, neurons))
    before, base, digest = snapshot(model), logits(model), outside_digest(model, neurons)
    with delta.apply(plain):
        expected = logits(plain)
    with delta.apply(model):
        torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)
        assert all(same_bytes(value, before[name]) for name, value in snapshot(model).items())
        assert outside_digest(model, neurons) == digest
    assert torch.equal(logits(model), base)
    assert not torch.allclose(expected, base, atol=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_deltas_of_packed_weights_learn(
    make_model: Callable[..., ChatModel], pack: Callable[[ChatModel], ChatModel], architecture: str
) -> None:
    ids = torch.tensor([[7, 9, 30, 41, 5, 66, 70, 8]])
    packed = pack(make_model(architecture))
    gradients: list[dict[str, Tensor]] = []
    for model in (packed, unpacked(make_model(architecture), packed)):
        model.model.requires_grad_(False)
        delta_model = DeltaModel(model, neuron_set(model))
        delta_model(ids, torch.ones_like(ids), ids[:, 4:])["loss"].backward()
        gradients.append({name: value.grad for name, value in delta_model.delta.items() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == delta_model.delta.keys()
    for name, gradient in gradients[1].items():
        assert gradient.any()
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_digest_sees_packed_weights(
    make_model: Callable[..., ChatModel], pack: Callable[[ChatModel], ChatModel]
) -> None:
    model = pack(make_model())
    neurons = neuron_set(model)
    digest = outside_digest(model, neurons)
    with torch.no_grad():
        model.model.model.layers[2].mlp.up_proj.weight[0, 0] ^= 1
    assert outside_digest(model, neurons) != digest


def test_digest_sees_any_outside_weight_and_no_inside_weight(one_of_each_tunable: ChatModel) -> None:
    neurons = neuron_set(one_of_each_tunable)
    masks = owned(one_of_each_tunable, neurons)
    digest = outside_digest(one_of_each_tunable, neurons)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in one_of_each_tunable.model.named_parameters():
            flat, mask = parameter.view(-1), masks[name].view(-1)
            for inside in (True, False):
                choices = (mask if inside else ~mask).nonzero().flatten()
                if not len(choices):
                    continue
                entry = int(choices[torch.randint(len(choices), (1,), generator=generator)])
                value = flat[entry].clone()
                flat[entry] += 0.5
                assert (outside_digest(one_of_each_tunable, neurons) == digest) is inside, (name, entry, inside)
                flat[entry] = value
    assert outside_digest(one_of_each_tunable, neurons) == digest


def test_delta_is_saved_and_loaded(model: ChatModel, tmp_path: Path) -> None:
    neurons = neuron_set(model)
    delta = NeuronDelta(neurons, random_delta(model, neurons))
    delta.save(tmp_path / "delta.safetensors")
    loaded = NeuronDelta.load(tmp_path / "delta.safetensors")
    assert loaded.tensors.keys() == delta.tensors.keys()
    assert all(same_bytes(loaded.tensors[name], value) for name, value in delta.tensors.items())
    assert loaded.neurons.provenance == neurons.provenance
    with safe_open(tmp_path / "delta.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["safety-neurons"])["about"]
    origin = said["neurons"]["provenance"]
    assert (origin["model"], origin["identity"]) == (model.name, model.identity)
    assert "SHA-256" in said["identity_is"]
    assert loaded.neurons.widths == neurons.widths
    for mine, theirs in zip(
        (*neurons.rejection, *neurons.conformity), (*loaded.neurons.rejection, *loaded.neurons.conformity), strict=True
    ):
        assert torch.equal(mine, theirs)
    with delta.apply(model):
        expected = logits(model)
    with loaded.apply(model):
        assert torch.equal(logits(model), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["delta.safetensors"]


def test_neuron_set_is_no_delta(model: ChatModel, tmp_path: Path) -> None:
    neuron_set(model).save(tmp_path / "neurons.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors at all")
    for name in ("neurons.safetensors", "broken.safetensors", "missing.safetensors"):
        with pytest.raises(SafetyNeuronsError, match=name):
            NeuronDelta.load(tmp_path / name)


def test_wrong_base_is_refused_and_left_alone(make_model: Callable[..., ChatModel]) -> None:
    model = make_model("llama", seed=0)
    neurons = neuron_set(model)
    delta = NeuronDelta(neurons, random_delta(model, neurons))
    other_weights = make_model("llama", seed=1)
    before = snapshot(other_weights)
    with pytest.raises(SafetyNeuronsError, match="was made for"), delta.apply(other_weights):
        pass
    assert all(same_bytes(value, before[name]) for name, value in snapshot(other_weights).items())
    # By their weights, too, where these have no name but their own.
    mine = load(model.model, model.tokenizer)
    changed = load(copy.deepcopy(model.model), model.tokenizer)
    assert changed.identity == mine.identity
    with torch.no_grad():
        changed.model.model.layers[1].mlp.gate_proj.weight.mul_(1.001)
    changed = load(changed.model, model.tokenizer)
    of_mine = neuron_set(mine)
    with pytest.raises(SafetyNeuronsError, match="was made for"):
        NeuronDelta(of_mine, random_delta(mine, of_mine)).apply(changed)
    wider = NeuronDelta(replace(neurons, widths=tuple(width + 1 for width in neurons.widths)), delta.tensors)
    with pytest.raises(SafetyNeuronsError, match="Find them on this model"), wider.apply(model):
        pass


class GateAndUpTakeTurns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(32, 96), nn.Linear(48, 32)

    def forward(self, hidden: Tensor) -> Tensor:
        mixed = self.both(hidden)
        written: Tensor = self.down(functional.silu(mixed[..., ::2]) * mixed[..., 1::2])
        return written


def test_neurons_whose_rows_stand_in_another_order_are_not_tuned(model: ChatModel) -> None:
    """Two rows feed each neuron, but not the ones that a fused matrix has: tuning would change others' weights."""
    for layer in decoder_layers(model.model):
        layer.mlp = GateAndUpTakeTurns()
    model = replace(model)
    assert model.coverage.neurons == 3 * 48
    with pytest.raises(SafetyNeuronsError, match=r"layers\.0\.mlp\.down can be found, .*but not tuned"):
        DeltaModel(model, neuron_set(model))


def test_delta_hooks_are_gone_after_an_exception(one_of_each_tunable: ChatModel) -> None:
    neurons = neuron_set(one_of_each_tunable)
    before = logits(one_of_each_tunable)

    def hooks(module: nn.Module) -> int:
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())

    count = hooks(one_of_each_tunable.model)
    with deltas_added(one_of_each_tunable, neurons, random_delta(one_of_each_tunable, neurons)):
        assert not torch.equal(logits(one_of_each_tunable), before)
    with (
        pytest.raises(IndexError),
        deltas_added(one_of_each_tunable, neurons, random_delta(one_of_each_tunable, neurons)),
    ):
        one_of_each_tunable.model(input_ids=torch.tensor([[10**6]]))
    assert hooks(one_of_each_tunable.model) == count
    assert torch.equal(logits(one_of_each_tunable), before)
