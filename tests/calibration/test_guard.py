"""The guard: it calibrates exactly the prompts above its threshold, and whatever else runs keeps its bits."""

import functools
import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from safety_neurons.calibration.calibration import calibrate
from safety_neurons.calibration.config import CalibrationConfig
from safety_neurons.calibration.detector import Detector, last_token_activations
from safety_neurons.calibration.guard import Guard, fit_guard, guard
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, Provenance

KNOWN, LAST = 5, 2
# The second and the last have the same length; the batch is padded.
PROMPTS = ["ab", "Hello there.", "A longer text, padded.", "How do I wrap a present?", "Good morning"]
EVERYWHERE = CalibrationConfig(prompt_positions="all", generated_tokens="all", edit="clamp", keep_norm=True)
CHOICES = [
    CalibrationConfig(),
    EVERYWHERE,
    CalibrationConfig(generated_tokens=2, direction="pooled", subset="rejection"),
]


def neuron_set(model: ChatModel) -> NeuronSet:
    """Random neurons, one of each site on both sides, with random directions."""
    generator = torch.Generator().manual_seed(0)
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    # Enough for some to be in each expert.
    drawn = [
        torch.randperm(hook_point.width, generator=generator)[: 9 * hook_point.blocks]
        for hook_point in model.hook_points
    ]
    rejection = tuple(found[: len(found) // 2 + 1].sort().values for found in drawn)
    conformity = tuple(found[len(found) // 2 :].sort().values for found in drawn)
    means = [tuple(torch.randn(KNOWN, width, generator=generator) * 0.5 for width in widths) for _ in range(2)]
    provenance = Provenance(model.name, model.identity, "by hand", 1.0, "layer", 0, (1,) * len(widths), 1)
    numbers = tuple(hook_point.layer for hook_point in model.hook_points)
    return NeuronSet(rejection, conformity, widths, numbers, provenance, Directions(*means))


def made(model: ChatModel, layer: int = 1, overrides: CalibrationConfig = CHOICES[0]) -> Guard:
    """A guard with random weights whose threshold is in the widest gap between the scores of `PROMPTS`."""
    neurons, detector = neuron_set(model), Detector(torch.empty(0), 0.3, torch.zeros(9), 1.0, 1e-2)
    size = sum(
        len(found)
        for found, hook_point in zip(neurons.both, model.hook_points, strict=True)
        if hook_point.layer <= layer
    )
    detector = replace(detector, weight=torch.randn(size, generator=torch.Generator().manual_seed(layer)))
    scores = Guard(neurons, detector, layer, 0.5, 2.0, overrides).scores(model, PROMPTS).sort().values
    widest = int(scores.diff().argmax())
    ordinary = torch.full((9,), float(scores[widest : widest + 2].mean()))
    return Guard(neurons, replace(detector, ordinary=ordinary), layer, 0.5, 2.0, overrides)


def sides(model: ChatModel, fitted: Guard) -> tuple[list[int], list[int]]:
    """The prompts that are flagged, and the others: some of both."""
    flagged = (fitted.scores(model, PROMPTS) > fitted.threshold).tolist()
    parts = [[number for number, one in enumerate(flagged) if one == side] for side in (True, False)]
    assert all(parts)
    return parts[0], parts[1]


def logits(model: ChatModel, prompts: list[int]) -> Tensor:
    with torch.inference_mode():
        # Absolute positions count from the first token that is not padding, as in generation.
        return cast(Tensor, forward(model.model, encoded(model, prompts), last_logits=0).logits)


def encoded(model: ChatModel, prompts: list[int]) -> Any:
    return model.encode([model.render(PROMPTS[number]) for number in prompts])


def generated(model: ChatModel, prompts: list[int], use_cache: bool = True) -> Tensor:
    """The raw logits [prompts, tokens, vocabulary] of four greedy tokens."""
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "use_cache": use_cache}
    output = model.model.generate(
        **encoded(model, prompts), **options, output_logits=True, return_dict_in_generate=True
    )
    return torch.stack(output.logits, 1)


def check_same(model: ChatModel, found: Tensor, expected: Tensor) -> None:
    """The same bits; experts run one after the other while they are hooked, which rounds in another order."""
    if all(hook_point.blocks == 1 for hook_point in model.hook_points):
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
    else:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def check_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def state(model: ChatModel) -> list[object]:
    modules = list(model.model.modules())
    return [(len(each._forward_hooks), len(each._forward_pre_hooks), "forward" in vars(each)) for each in modules]


def calibrated(model: ChatModel, fitted: Guard, prompts: list[int], run: Callable[..., Tensor]) -> Tensor:
    """What plain calibration after the guard's layer makes of these prompts alone."""
    overrides = vars(fitted.calibration) | {"layers": (fitted.layer + 1, LAST)}
    with calibrate(model, fitted.neurons, toward="rejection", alpha=fitted.alpha, **overrides):
        return run(model, prompts)


@pytest.mark.parametrize("layer", [0, 1])
def test_decisions_are_scores_above_the_threshold(one_of_each: ChatModel, layer: int) -> None:
    fitted = made(one_of_each, layer)
    features = last_token_activations(
        one_of_each, fitted.deciding, [one_of_each.render(prompt) for prompt in PROMPTS], 1
    )
    scores = fitted.scores(one_of_each, PROMPTS, batch_size=2)
    check_near(scores, features @ fitted.detector.weight + fitted.detector.bias)
    for run in (logits, generated):
        with guard(one_of_each, fitted) as decisions:
            run(one_of_each, [0, 1, 2, 3, 4])
        check_near(decisions.scores, scores)
        assert torch.equal(decisions.flagged, scores > fitted.threshold)


def test_experts_are_calibrated_only_after_all_deciding_neurons_ran(mixture: ChatModel) -> None:
    for layer in (0, 1):
        fitted = made(mixture, layer)
        flagged, others = sides(mixture, fitted)
        plain = generated(mixture, others)
        with guard(mixture, fitted) as decisions:
            check_near(generated(mixture, others), plain)
            generated(mixture, flagged)
        prompts = [PROMPTS[number] for number in flagged]
        check_near(decisions.scores, fitted.scores(mixture, prompts))


@pytest.mark.parametrize("layer", [0, 1])
def test_batches_without_flagged_prompts_keep_every_bit(one_of_each: ChatModel, layer: int) -> None:
    model = one_of_each
    for overrides in CHOICES:
        fitted = made(model, layer, overrides)
        _, others = sides(model, fitted)
        plain = [run(model, others) for run in (logits, generated)]
        with guard(model, fitted) as decisions:
            for run, expected in zip((logits, generated), plain, strict=True):
                check_same(model, run(model, others), expected)
                assert not decisions.flagged.any()


@pytest.mark.parametrize("layer", [0, 1])
def test_in_a_mixed_batch_exactly_the_flagged_are_calibrated(one_of_each: ChatModel, layer: int) -> None:
    model, every = one_of_each, [0, 1, 2, 3, 4]
    for overrides, run in itertools.product(CHOICES, (logits, generated)):
        fitted = made(model, layer, overrides)
        flagged, others = sides(model, fitted)
        plain = run(model, every)
        with guard(model, fitted):
            found = run(model, every)
        check_same(model, found[others], plain[others])
        alone = calibrated(model, fitted, flagged, run)
        # Alone they have less padding.
        check_near(found[flagged][:, -alone.shape[1] :], alone)
        assert float((found - plain)[flagged].flatten(1).abs().max(1).values.min()) > 1e-2


def test_cached_is_uncached_and_batched_is_single(one_of_each: ChatModel) -> None:
    for overrides in CHOICES:
        fitted = made(one_of_each, 1, overrides)
        with guard(one_of_each, fitted):
            cached = generated(one_of_each, [0, 1, 2, 3, 4])
            check_near(generated(one_of_each, [0, 1, 2, 3, 4], use_cache=False), cached)
            for number in range(len(PROMPTS)):
                check_near(generated(one_of_each, [number])[0], cached[number])


def test_one_context_serves_batches_whose_flags_differ(one_of_each: ChatModel) -> None:
    model, fitted = one_of_each, made(one_of_each, 1, EVERYWHERE)
    flagged, others = sides(model, fitted)
    batches = [flagged + others, others + flagged, others, flagged, flagged[:1], others[:1], flagged[:1], others]
    runs: list[Callable[..., Tensor]] = [logits, generated, functools.partial(generated, use_cache=False)]
    alone = {}
    for (number, batch), (kind, run) in itertools.product(enumerate(batches), enumerate(runs)):
        with guard(model, fitted):
            alone[number, kind] = run(model, batch)
    with guard(model, fitted) as decisions:
        for (number, batch), (kind, run) in itertools.product(enumerate(batches), enumerate(runs)):
            check_same(model, run(model, batch), alone[number, kind])
            assert decisions.flagged.tolist() == [prompt in flagged for prompt in batch]
            # A pass that breaks off before it is decided leaves nothing, either.
            with pytest.raises(IndexError):
                model.model(input_ids=torch.full((1, 3), 10**6))


def test_the_model_is_as_it_was_after_the_context_and_after_an_exception(one_of_each: ChatModel) -> None:
    model, fitted, before = one_of_each, made(one_of_each), state(one_of_each)
    plain = logits(model, [0, 1, 2])
    with guard(model, fitted):
        logits(model, [0, 1, 2])
        assert state(model) != before
    assert state(model) == before
    with pytest.raises(IndexError), guard(model, fitted):
        model.model(input_ids=torch.tensor([[10**6]]))
    failing = model.model.get_output_embeddings().register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), guard(model, fitted):
        generated(model, [0, 1])
    failing.remove()
    for broken in (
        replace(fitted, alpha=float("nan")),
        replace(fitted, calibration=CalibrationConfig(prompt_positions=KNOWN + 1)),
    ):
        with pytest.raises(SafetyNeuronsError), guard(model, broken):
            pass
    assert state(model) == before
    assert torch.equal(logits(model, [0, 1, 2]), plain)


def test_a_plain_transformers_model_is_guarded_as_the_chat_model(one_of_each: ChatModel) -> None:
    fitted = made(one_of_each)
    with guard(one_of_each, fitted):
        expected = generated(one_of_each, [0, 1, 2, 3, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with guard(one_of_each.model, fitted) as decisions:
            assert torch.equal(generated(one_of_each, [0, 1, 2, 3, 4]), expected)
    assert decisions.flagged.any()


def test_a_model_of_another_shape_is_an_error(model: ChatModel, make_model: Callable[..., ChatModel]) -> None:
    for other in (make_model(intermediate_size=40), make_model(num_hidden_layers=4)):
        before = state(other)
        for given in (replace(other, identity=model.identity), other.model):
            with pytest.raises(SafetyNeuronsError, match="other widths"), guard(given, made(model)):
                pass
        with pytest.raises(SafetyNeuronsError, match="other widths"):
            fit_guard(other, neuron_set(model), PROMPTS, PROMPTS, false_positive_rate=0.5)
        assert state(other) == before


def test_other_weights_of_the_same_shape_are_refused_with_both_identities(
    model: ChatModel, make_model: Callable[..., ChatModel]
) -> None:
    other = make_model(seed=1)
    before = state(other)
    with (
        pytest.raises(SafetyNeuronsError, match=rf"{model.identity[:12]}\), not in .*{other.identity[:12]}"),
        guard(other, made(model)),
    ):
        pass
    assert state(other) == before
    with guard(model, made(model)), guard(other.model, made(model)):
        pass
