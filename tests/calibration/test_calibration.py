"""Calibration: recomputed by hand, with and without the cache, alone and in a batch, and gone afterwards."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from builders.quick import find
from safety_neurons.calibration.calibration import calibrate, dose
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.hook_points import ActivationHook, Activations, HookPoint, activation_hooks
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, Provenance
from safety_neurons.neurons.read import write_norms

CAPTURED = 6
PROMPT = "How do I wrap a present?"
# The shortest has fewer tokens than positions are calibrated.
TEXTS = ["ab", "Hello there.", "A longer text, so that the others are padded."]


def neuron_set(model: ChatModel, seed: int = 0) -> NeuronSet:
    """Random neurons, none in the second layer, with random directions for CAPTURED positions."""
    generator = torch.Generator().manual_seed(seed)
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    # Enough for some to be in each expert.
    drawn = [
        torch.randperm(hook_point.width, generator=generator)[: 9 * hook_point.blocks if hook_point.layer != 1 else 0]
        for hook_point in model.hook_points
    ]
    rejection = tuple(layer[:6].sort().values for layer in drawn)
    # One neuron is on both sides: it must be moved once.
    conformity = tuple(layer[5:].sort().values for layer in drawn)
    means = [
        tuple(torch.randn(CAPTURED, width, generator=generator) * 0.5 for width in widths)
        for _ in ("harmful", "benign")
    ]
    each = (1,) * len(widths)
    provenance = Provenance(model.name, model.identity, "by hand", 1.0, "layer", seed, each, model.parameters)
    layers = tuple(hook_point.layer for hook_point in model.hook_points)
    return NeuronSet(rejection, conformity, widths, layers, provenance, Directions(*means))


def logits(model: ChatModel, texts: list[str]) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.model(**model.encode(texts)).logits
    return found


def state(model: ChatModel) -> list[object]:
    """All that calibration could leave behind: hooks, and experts that run in another way."""
    modules = list(model.model.modules())
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules]
    return [hooks, *(id(getattr(module, "config", None)) for module in modules)]


def generated(model: ChatModel, texts: list[str], tokens: int = 4, use_cache: bool = True) -> tuple[Tensor, Tensor]:
    """Token ids [batch, tokens] and the raw logits [batch, tokens, vocabulary] that they were chosen from."""
    inputs = model.encode(texts)
    with torch.inference_mode():
        output = model.model.generate(
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return output.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(output.logits, 1)


def expected_shift(
    neurons: NeuronSet, hook_point: int, sign: float, prompt_tokens: int, tokens: int, prompt: int, answer: int
) -> Tensor:
    """What is added to the activations [tokens, neurons] of one unpadded sequence, written down number by number."""
    assert neurons.directions is not None
    difference = neurons.directions.benign[hook_point] - neurons.directions.harmful[hook_point]
    shift = torch.zeros(tokens, neurons.widths[hook_point])
    chosen = {*neurons.rejection[hook_point].tolist(), *neurons.conformity[hook_point].tolist()}
    for token in range(tokens):
        from_end = token - prompt_tokens
        for neuron in chosen:
            if -prompt <= from_end < 0:
                shift[token, neuron] = sign * difference[CAPTURED + from_end, neuron]
            elif 0 <= from_end < answer:
                shift[token, neuron] = sign * difference[CAPTURED - 1, neuron]
    return shift


class Recorder:
    """Per pass and site the activations [tokens, neurons] as the hooks that came before leave them.

    Not a number where an expert's neurons did not see a token.
    """

    def __init__(self, model: ChatModel) -> None:
        self.model = model
        self.passes: list[list[Tensor]] = []

    def begin(self, _module: nn.Module, _args: object, kwargs: dict[str, Tensor]) -> None:
        tokens = kwargs["input_ids"].numel()
        self.passes.append([torch.full((tokens, hook_point.width), torch.nan) for hook_point in self.model.hook_points])

    def hook(self, hook_point: int) -> ActivationHook:
        def record(activations: Activations) -> None:
            tokens = len(self.passes[-1][hook_point])
            rows = activations.of_tokens(torch.arange(tokens)[None])
            columns = slice(activations.first, activations.first + activations.values.shape[1])
            self.passes[-1][hook_point][rows, columns] = activations.values

        return record

    def hooks(self) -> list[tuple[HookPoint, ActivationHook]]:
        return [(hook_point, self.hook(number)) for number, hook_point in enumerate(self.model.hook_points)]


def add_by_hand(model: ChatModel, number: int, shift: Tensor) -> RemovableHandle:
    """Add `shift` [tokens, neurons] to a site's activations without the library's hooks.

    To the write matrix's input; for experts, what it would write is added to the experts' output.
    """
    hook_point = model.hook_points[number]
    module = model.model.get_submodule(hook_point.name)
    if hook_point.blocks == 1:
        return module.register_forward_pre_hook(lambda _module, args: (args[0] + shift.reshape(args[0].shape),))

    def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        _, chosen, weights = args
        inner, output = hook_point.width // hook_point.blocks, output.clone()
        for token in range(len(output)):
            for expert, weight in zip(chosen[token].tolist(), weights[token], strict=True):
                mine = shift[token, expert * inner : (expert + 1) * inner]
                down = module.get_parameter("down_proj")[expert]
                output[token] += weight * (mine @ (down if len(down) == inner else down.T))
        return output

    return module.register_forward_hook(add)


def test_strength_zero_leaves_every_logit(any_model: ChatModel) -> None:
    neurons = neuron_set(any_model)
    before = logits(any_model, TEXTS)
    with calibrate(any_model, neurons, toward="rejection", alpha=0.0, prompt_positions=CAPTURED):
        calibrated = logits(any_model, TEXTS)
    if all(hook_point.blocks == 1 for hook_point in any_model.hook_points):
        assert torch.equal(calibrated, before)
    else:
        # Experts run one after the other while they are hooked, which rounds in another order.
        torch.testing.assert_close(calibrated, before, rtol=1e-4, atol=1e-5)


def test_model_is_as_it_was_after_the_context_and_after_an_exception(any_model: ChatModel) -> None:
    neurons = neuron_set(any_model)
    before, base = logits(any_model, TEXTS), state(any_model)
    with calibrate(any_model, neurons, toward="conformity", alpha=3.0) as calibrated:
        assert calibrated is any_model
        assert not torch.equal(logits(any_model, TEXTS), before)
    assert torch.equal(logits(any_model, TEXTS), before)
    with pytest.raises(IndexError), calibrate(any_model, neurons, toward="rejection", alpha=3.0):
        any_model.model(input_ids=torch.tensor([[10**6]]))
    assert torch.equal(logits(any_model, TEXTS), before)
    assert state(any_model) == base


@pytest.mark.parametrize(
    ("toward", "alpha", "positions"), [("conformity", 2.0, 1), ("rejection", 1.5, 4), ("rejection", 2.0, CAPTURED)]
)
def test_shift_is_the_mean_difference_at_the_last_prompt_positions(
    any_model: ChatModel, toward: Literal["rejection", "conformity"], alpha: float, positions: int
) -> None:
    neurons = neuron_set(any_model)
    text = any_model.render(PROMPT)
    tokens = any_model.encode([text])["input_ids"].shape[1]
    sign = alpha if toward == "conformity" else -alpha
    handles = [
        add_by_hand(any_model, hook_point, expected_shift(neurons, hook_point, sign, tokens, tokens, positions, 0))
        for hook_point in range(len(any_model.hook_points))
    ]
    naive = logits(any_model, [text])
    for handle in handles:
        handle.remove()
    plain = logits(any_model, [text])
    with calibrate(any_model, neurons, toward=toward, alpha=alpha, prompt_positions=positions):
        found = logits(any_model, [text])
    torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-4)
    # Causal models: what stands before the calibrated positions cannot notice, what follows does.
    torch.testing.assert_close(found[0, :-positions], plain[0, :-positions], rtol=1e-4, atol=1e-4)
    assert float((found[0, -positions:] - plain[0, -positions:]).abs().max(1).values.min()) > 1e-2


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize(("positions", "answer"), [(3, 2), (0, 1)])
def test_exactly_the_chosen_neurons_move_at_exactly_the_chosen_tokens(
    one_of_each: ChatModel, use_cache: bool, positions: int, answer: int
) -> None:
    model, neurons = one_of_each, neuron_set(one_of_each)
    before, after = Recorder(model), Recorder(model)
    text = model.render(PROMPT)
    prompt_tokens = model.encode([text])["input_ids"].shape[1]
    handles = [model.model.register_forward_pre_hook(each.begin, with_kwargs=True) for each in (before, after)]
    with (
        activation_hooks(before.hooks()),
        calibrate(model, neurons, toward="rejection", alpha=2.0, prompt_positions=positions, generated_tokens=answer),
        activation_hooks(after.hooks()),
    ):
        generated(model, [text], tokens=5, use_cache=use_cache)
    for handle in handles:
        handle.remove()
    assert len(before.passes) == len(after.passes) == 5
    for step, (given, moved) in enumerate(zip(before.passes, after.passes, strict=True)):
        for hook_point in range(len(model.hook_points)):
            whole = expected_shift(neurons, hook_point, -2.0, prompt_tokens, prompt_tokens + step, positions, answer)
            expected, seen = whole[-len(given[hook_point]) :], ~given[hook_point].isnan()
            touched = expected != 0
            assert torch.equal(seen, ~moved[hook_point].isnan())
            # The base are the same bits, not only near.
            assert torch.equal(moved[hook_point][~touched & seen], given[hook_point][~touched & seen])
            difference = (moved[hook_point] - given[hook_point])[seen]
            torch.testing.assert_close(difference, expected[seen], rtol=1e-4, atol=1e-4)
        assert len(given[0]) == (prompt_tokens if step == 0 else 1 if use_cache else prompt_tokens + step)


def test_cached_generation_is_uncached_generation(any_model: ChatModel) -> None:
    neurons = neuron_set(any_model)
    with calibrate(any_model, neurons, toward="conformity", alpha=2.0, prompt_positions=4, generated_tokens=2):
        cached_ids, cached = generated(any_model, TEXTS, use_cache=True)
        uncached_ids, uncached = generated(any_model, TEXTS, use_cache=False)
    assert torch.equal(cached_ids, uncached_ids)
    torch.testing.assert_close(cached, uncached, rtol=1e-3, atol=1e-3)
    with calibrate(any_model, neurons, toward="conformity", alpha=2.0, prompt_positions=4, generated_tokens=0):
        _, without = generated(any_model, TEXTS, use_cache=True)
    assert torch.equal(without[:, 0], cached[:, 0])
    assert not torch.allclose(without[:, 1], cached[:, 1], atol=1e-2)


def test_batched_is_single(any_model: ChatModel) -> None:
    neurons = neuron_set(any_model)
    with calibrate(any_model, neurons, toward="rejection", alpha=2.0, prompt_positions=5, generated_tokens=2):
        batched_ids, batched = generated(any_model, TEXTS)
        for index, text in enumerate(TEXTS):
            single_ids, single = generated(any_model, [text])
            assert torch.equal(batched_ids[index], single_ids[0])
            torch.testing.assert_close(batched[index], single[0], rtol=1e-3, atol=1e-3)


def test_one_context_serves_several_batches(model: ChatModel) -> None:
    neurons = neuron_set(model)
    texts = [model.render(text) for text in TEXTS]
    with calibrate(model, neurons, toward="rejection", alpha=2.0, generated_tokens=1):
        join_processes = [
            generated(model, texts[:2])[1],
            generated(model, texts[2:])[1],
            generated(model, texts[:2])[1],
        ]
    for part, chosen in zip(join_processes, (texts[:2], texts[2:], texts[:2]), strict=True):
        with calibrate(model, neurons, toward="rejection", alpha=2.0, generated_tokens=1):
            assert torch.equal(generated(model, chosen)[1], part)


def test_activations_are_never_written_in_place(one_of_each: ChatModel) -> None:
    neurons = neuron_set(one_of_each)
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(activations: Activations) -> None:
        seen.append((activations.values, activations.values.clone()))

    with (
        activation_hooks((hook_point, keep) for hook_point in one_of_each.hook_points),
        calibrate(one_of_each, neurons, toward="rejection", alpha=2.0),
    ):
        logits(one_of_each, TEXTS)
    assert len(seen) >= len(one_of_each.hook_points)
    assert all(torch.equal(tensor, copy) for tensor, copy in seen)


def test_opposite_calibrations_cancel(model: ChatModel) -> None:
    neurons = neuron_set(model)
    text = [model.render(PROMPT)]
    plain = logits(model, text)
    with calibrate(model, neurons, toward="rejection", alpha=1.0):
        once = logits(model, text)
        with calibrate(model, neurons, toward="conformity", alpha=1.0):
            torch.testing.assert_close(logits(model, text), plain, rtol=1e-4, atol=1e-4)
        assert torch.equal(logits(model, text), once)
    assert not torch.allclose(once, plain, atol=1e-2)


def test_calibration_toward_conformity_carries_harmful_means_to_benign_means(
    model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    """With strength 1 and the found directions, the mean harmful activation of layer 0 becomes the benign one."""
    neurons = find(model, harmful, benign, percent=30.0, scope="layer", positions=3)
    assert len(neurons.both[0])
    means: list[Tensor] = []

    def record(activations: Activations) -> None:
        means.append(activations.values.view(len(harmful), -1, 48)[:, -3:].mean(0))

    texts = [model.render(prompt) for prompt in harmful]
    with (
        calibrate(model, neurons, toward="conformity", alpha=1.0, prompt_positions=3),
        model.hook_points[0].hooked(record),
    ):
        logits(model, texts)
    assert neurons.directions is not None
    chosen = neurons.both[0]
    torch.testing.assert_close(means[0][:, chosen], neurons.directions.benign[0][:, chosen], rtol=1e-4, atol=1e-4)


def test_bfloat16_model_is_calibrated_in_its_own_precision(model: ChatModel) -> None:
    neurons = neuron_set(model)
    half = replace(model, model=model.model.to(torch.bfloat16))
    plain = logits(half, TEXTS)
    with calibrate(half, neurons, toward="rejection", alpha=3.0, generated_tokens=1):
        moved = logits(half, TEXTS)
        generated(half, TEXTS)
    assert moved.dtype == torch.bfloat16
    assert not torch.equal(moved, plain)


def test_more_positions_than_were_captured_is_an_error(model: ChatModel) -> None:
    base = state(model)
    with (
        pytest.raises(SafetyNeuronsError, match=rf"{CAPTURED}.*{CAPTURED + 1}"),
        calibrate(model, neuron_set(model), toward="rejection", alpha=1.0, prompt_positions=CAPTURED + 1),
    ):
        pass
    assert state(model) == base


def test_neurons_without_directions_are_an_error(model: ChatModel) -> None:
    with (
        pytest.raises(SafetyNeuronsError, match="directions"),
        calibrate(model, replace(neuron_set(model), directions=None), toward="rejection", alpha=1.0),
    ):
        pass


def test_neurons_of_another_shape_are_an_error(model: ChatModel) -> None:
    neurons = neuron_set(model)
    wider = replace(neurons, widths=tuple(width * 2 for width in neurons.widths))
    fewer_layers = replace(
        neurons,
        rejection=neurons.rejection[:2],
        conformity=neurons.conformity[:2],
        widths=neurons.widths[:2],
        layers=neurons.layers[:2],
    )
    other_layers = replace(neurons, layers=tuple(layer + 1 for layer in neurons.layers))
    base = state(model)
    for other in (wider, fewer_layers, other_layers):
        with (
            pytest.raises(SafetyNeuronsError, match="Find them on this model"),
            calibrate(model, other, toward="rejection", alpha=1.0),
        ):
            pass
    assert state(model) == base


def test_the_dose_is_the_summed_length_of_the_shifts(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    neurons = find(model, harmful, benign, percent=20)
    seen: list[list[torch.Tensor]] = [[], []]
    text = model.render("Hi")
    for number, alpha in enumerate((0.0, 2.0)):
        hooks = [
            (hook_point, lambda seen_, kept=seen[number]: kept.append(seen_.values[-1]))
            for hook_point in model.hook_points
        ]
        # Of one layer at a time: a shift moves the layers above it, too.
        with calibrate(model, neurons, toward="conformity", alpha=alpha), activation_hooks(hooks), torch.no_grad():
            model.model(**model.encode([text]))
    norms = write_norms(model).norm_2
    first = neurons.both[0]
    one_layer = replace(neurons, rejection=(first, *[first[:0]] * 2), conformity=(first[:0],) * 3)
    moved = (seen[1][0] - seen[0][0]).abs() @ norms[0]
    assert float(moved) == pytest.approx(2 * dose(one_layer, norms), rel=1e-4)
    assert dose(neurons, norms) > dose(one_layer, norms) > 0
