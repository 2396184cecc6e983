"""The options of calibration: each recomputed number by number, alone and in a batch, with and without the cache."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor, nn

from safety_neurons.calibration.calibration import calibrate, open_window, shifts
from safety_neurons.calibration.config import CalibrationConfig
from safety_neurons.calibration.shift import CalibratedTokens, Shift, TokenWindow
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import PromptPositions, follow_positions
from safety_neurons.models.neurons.hook_points import ActivationHook, Activations, activation_hooks
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, Provenance

KNOWN = 4
# What the tiny template puts behind the user's words: <|end|><|assistant|>.
TAIL = 2
# The shortest has fewer tokens than directions are known for.
TEXTS = ["ab", "Hello there.", "A longer text, padded."]
EVERYWHERE: dict[str, Any] = {"prompt_positions": "all", "generated_tokens": "all"}
CHOICES: list[dict[str, Any]] = [
    {"edit": edit, "direction": direction, "keep_norm": keep_norm}
    for edit, direction, keep_norm in itertools.product(("add", "clamp"), ("position", "pooled"), (False, True))
]
Offsets = list[int | None]


def neuron_set(model: ChatModel, seed: int = 0) -> NeuronSet:
    """Random neurons of every site, one of them on both sides, with random directions."""
    generator = torch.Generator().manual_seed(seed)
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    # Enough for some to be in each expert.
    drawn = [
        torch.randperm(hook_point.width, generator=generator)[: 9 * hook_point.blocks]
        for hook_point in model.hook_points
    ]
    halves = [len(layer) // 2 for layer in drawn]
    rejection = tuple(layer[: half + 1].sort().values for layer, half in zip(drawn, halves, strict=True))
    conformity = tuple(layer[half:].sort().values for layer, half in zip(drawn, halves, strict=True))
    means = [tuple(torch.randn(KNOWN, width, generator=generator) * 0.5 for width in widths) for _ in range(2)]
    provenance = Provenance(model.name, model.identity, "by hand", 1.0, "layer", seed, (1,) * len(widths), 1)
    layers = tuple(hook_point.layer for hook_point in model.hook_points)
    return NeuronSet(rejection, conformity, widths, layers, provenance, Directions(*means))


def bits(values: Tensor) -> Tensor:
    """0.0 and -0.0 are equal as numbers."""
    return values.contiguous().view(torch.int16 if values.element_size() == 2 else torch.int32)


def logits(model: ChatModel, texts: list[str] = TEXTS, side: str = "left") -> Tensor:
    inputs = model.tokenizer(texts, return_tensors="pt", padding=True, padding_side=side, add_special_tokens=False)
    with torch.inference_mode():
        return cast(Tensor, model.model(**inputs).logits)


def generated(model: ChatModel, texts: list[str] = TEXTS, use_cache: bool = True) -> Tensor:
    """The raw logits [batch, tokens, vocabulary] of four greedy tokens."""
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "use_cache": use_cache}
    with torch.inference_mode():
        output = model.model.generate(
            **model.encode(texts), **options, output_logits=True, return_dict_in_generate=True
        )
    return torch.stack(output.logits, 1)


def recorded(model: ChatModel, neurons: NeuronSet, run: Callable[[], object], **overrides: Any) -> list[list[Tensor]]:
    """Per pass and site the activations [2, tokens, neurons] that calibration was given and those that it left.

    Not a number where an expert did not see a token.
    """
    passes: list[list[Tensor]] = []

    def begin(_module: nn.Module, _args: object, kwargs: dict[str, Tensor]) -> None:
        passes.append(
            [
                torch.full((2, kwargs["input_ids"].numel(), hook_point.width), torch.nan)
                for hook_point in model.hook_points
            ]
        )

    def record(hook_point: int, side: int) -> ActivationHook:
        def hook(activations: Activations) -> None:
            into = passes[-1][hook_point][side]
            rows = activations.of_tokens(torch.arange(len(into))[None])
            into[rows, activations.first : activations.first + activations.values.shape[1]] = activations.values

        return hook

    sides = [
        [(hook_point, record(number, side)) for number, hook_point in enumerate(model.hook_points)] for side in (0, 1)
    ]
    handle = model.model.register_forward_pre_hook(begin, with_kwargs=True)
    with activation_hooks(sides[0]), calibrate(model, neurons, **overrides), activation_hooks(sides[1]):
        run()
    handle.remove()
    return passes


def flat(rows: Iterable[Offsets]) -> Offsets:
    return list(itertools.chain.from_iterable(rows))


def offsets_of(model: ChatModel, texts: list[str] = TEXTS, side: str = "left") -> list[Offsets]:
    """Per text where its tokens stand, counted from the prompt's end; None is padding. One token is one byte."""
    lengths = [len(model.encode([text])["input_ids"][0]) for text in texts]
    paddings: list[Offsets] = [[None] * (max(lengths) - length) for length in lengths]
    rows: list[Offsets] = [list(range(-length, 0)) for length in lengths]
    return [pad + row if side == "left" else row + pad for pad, row in zip(paddings, rows, strict=True)]


def by_hand(
    neurons: NeuronSet, hook_point: int, given: Tensor, offsets: Offsets, **overrides: Any
) -> tuple[Tensor, Tensor]:
    """What the activations of a site become, number by number, and which ones are calibrated [tokens, neurons]."""
    assert neurons.directions is not None
    sides = {"both": ("rejection", "conformity")}.get(overrides.get("subset", "both"), (overrides.get("subset"),))
    chosen = sorted({neuron for side in sides for neuron in getattr(neurons, str(side))[hook_point].tolist()})
    first, last = overrides.get("layers", (0, math.inf))
    if not first <= neurons.layers[hook_point] <= last:
        chosen = []
    reach, answer = (
        {"all": math.inf, "template": TAIL}.get(overrides[name], overrides[name])
        for name in ("prompt_positions", "generated_tokens")
    )
    means = [neurons.directions.harmful[hook_point].tolist(), neurons.directions.benign[hook_point].tolist()]
    away, target = means if overrides["toward"] == "conformity" else means[::-1]
    values, touched = given.tolist(), torch.zeros(given.shape, dtype=torch.bool)
    for token, offset in enumerate(offsets):
        if offset is None or not -reach <= offset < answer:
            continue
        pooled = overrides.get("direction") == "pooled" or offset < -KNOWN
        places = range(KNOWN) if pooled else [KNOWN + min(offset, -1)]
        for neuron in chosen:
            leave = sum(away[place][neuron] for place in places) / len(places)
            aim = sum(target[place][neuron] for place in places) / len(places)
            if overrides.get("edit") == "clamp":
                values[token][neuron] = (1 - overrides["alpha"]) * values[token][neuron] + overrides["alpha"] * aim
            else:
                values[token][neuron] += overrides["alpha"] * (aim - leave)
            touched[token, neuron] = True
    return torch.tensor(values), touched


def check(neurons: NeuronSet, hook_points: list[Tensor], offsets: Offsets, **overrides: Any) -> int:
    """Compare one pass with `by_hand`; how many activations moved."""
    moved = 0
    for hook_point, (given, left) in enumerate(hook_points):
        expected, touched = by_hand(neurons, hook_point, given, offsets, **overrides)
        # The base are the same bits, not only near.
        assert torch.equal(bits(left)[~touched], bits(given)[~touched])
        seen = touched & ~given.isnan()
        assert (left != given)[seen].all()
        torch.testing.assert_close(left, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
        moved += int(seen.sum())
    return moved


def check_batch(model: ChatModel, side: str = "left", **overrides: Any) -> None:
    overrides = {"toward": "rejection", "alpha": 2.0, "prompt_positions": KNOWN, "generated_tokens": 0} | overrides
    neurons, offsets = neuron_set(model), flat(offsets_of(model, side=side))
    (only,) = recorded(model, neurons, lambda: logits(model, side=side), **overrides)
    assert check(neurons, only, offsets, **overrides)


def test_alpha_zero_changes_no_bit_of_any_logits(one_of_each_tunable: ChatModel) -> None:
    model, neurons = one_of_each_tunable, neuron_set(one_of_each_tunable)
    plain, answers = bits(logits(model)), bits(generated(model))
    for options in CHOICES:
        with calibrate(model, neurons, toward="rejection", alpha=0.0, **options, **EVERYWHERE):
            assert torch.equal(bits(logits(model)), plain), options
            assert torch.equal(bits(generated(model)), answers), options


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("edit", ["add", "clamp"])
def test_alpha_zero_leaves_the_sign_of_zero_and_the_smallest_numbers(
    edit: Literal["add", "clamp"], keep_norm: bool, dtype: torch.dtype
) -> None:
    where = PromptPositions()
    where.offsets = torch.tensor([[-4, -3, -2, -1]])
    away, target = torch.randn(2, KNOWN + 2, 4, generator=torch.Generator().manual_seed(0))
    target[:, 0], target[:, 1] = 1.0, -1.0
    rows = [[-0.0, -0.0, 0.0, 1.5], [-0.0, -0.0, -0.0, -0.0], [0.3, -2.7, 1e-4, -0.0], [1e-30, -1e-25, 2.0, -0.0]]
    values = torch.tensor(rows, dtype=dtype)
    # Without and with a token that is left out.
    for reach in (None, 2):
        window = TokenWindow(where, KNOWN, reach, None)
        overrides = CalibrationConfig(edit=edit, keep_norm=keep_norm)
        left = Shift(window, torch.tensor([0, 1, 3]), away, target, 0.0, overrides)(Activations(values))
        assert left is None or torch.equal(bits(left), bits(values))


@pytest.mark.parametrize("subset", ["rejection", "conformity"])
def test_exactly_the_neurons_of_the_subset_move(one_of_each: ChatModel, subset: str) -> None:
    check_batch(one_of_each, subset=subset)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["all", "template", 1])
def test_exactly_the_chosen_prompt_tokens_move(one_of_each: ChatModel, positions: int | str, side: str) -> None:
    """Before the known positions "all" takes the pooled direction; padding never moves."""
    check_batch(one_of_each, side, prompt_positions=positions)


def test_template_is_the_number_of_tokens_behind_the_users_words(model: ChatModel) -> None:
    neurons, texts = neuron_set(model), [model.render(text) for text in TEXTS]
    found = []
    for positions in ("template", model.template_tail, model.template_tail + 1):
        with calibrate(model, neurons, toward="rejection", alpha=2.0, prompt_positions=cast(int, positions)):
            found.append(logits(model, texts))
    assert model.template_tail == TAIL
    assert torch.equal(bits(found[0]), bits(found[1]))
    assert not torch.allclose(found[0], found[2], atol=1e-2)


@pytest.mark.parametrize(("direction", "answer"), [("position", "all"), ("pooled", "all"), ("position", 2)])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_exactly_the_chosen_generated_tokens_move(
    one_of_each: ChatModel, use_cache: bool, direction: str, answer: int | str
) -> None:
    model, neurons = one_of_each, neuron_set(one_of_each)
    overrides = {"toward": "rejection", "alpha": 1.5, "direction": direction}
    overrides |= {"prompt_positions": 0, "generated_tokens": answer}
    passes = recorded(model, neurons, lambda: generated(model, use_cache=use_cache), **overrides)
    assert len(passes) == 4
    for step, hook_points in enumerate(passes):
        whole = [[*row, *range(step)] for row in offsets_of(model)]
        offsets = flat([row[-1]] if use_cache and step else row for row in whole)
        over = use_cache and answer != "all" and step > int(answer)
        assert bool(check(neurons, hook_points, offsets, **overrides)) == (step > 0 and not over)


def test_all_tokens_cached_are_uncached_and_batched_are_single(one_of_each: ChatModel) -> None:
    model, neurons = one_of_each, neuron_set(one_of_each)
    for options in CHOICES:
        with calibrate(model, neurons, toward="conformity", alpha=0.7, **options, **EVERYWHERE):
            cached = generated(model)
            torch.testing.assert_close(generated(model, use_cache=False), cached, rtol=1e-3, atol=1e-3)
            for index, text in enumerate(TEXTS):
                torch.testing.assert_close(generated(model, [text])[0], cached[index], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("positions", [1, KNOWN, KNOWN + 5, "all"])
def test_pooled_is_the_mean_of_the_known_positions_everywhere(one_of_each: ChatModel, positions: int | str) -> None:
    check_batch(one_of_each, toward="conformity", direction="pooled", prompt_positions=positions)


@pytest.mark.parametrize("toward", ["rejection", "conformity"])
@pytest.mark.parametrize("direction", ["position", "pooled"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_clamped_activations_go_their_share_of_the_way(
    one_of_each: ChatModel, alpha: float, direction: str, toward: str
) -> None:
    check_batch(one_of_each, toward=toward, alpha=alpha, direction=direction, edit="clamp", prompt_positions="all")


@pytest.mark.parametrize("edit", ["add", "clamp"])
def test_kept_norm_turns_the_neurons_and_keeps_their_joint_length(one_of_each: ChatModel, edit: str) -> None:
    model, neurons, offsets = one_of_each, neuron_set(one_of_each), flat(offsets_of(one_of_each))
    overrides: dict[str, Any] = {"toward": "rejection", "alpha": 0.8, "edit": edit} | EVERYWHERE
    (hook_points,) = recorded(model, neurons, lambda: logits(model), **overrides, keep_norm=True)
    for number, (given, left) in enumerate(hook_points):
        expected, touched = by_hand(neurons, number, given, offsets, **overrides)
        assert torch.equal(bits(left)[~touched], bits(given)[~touched])
        seen = touched & ~given.isnan()
        before, after, turned = (torch.where(seen, part, 0) for part in (given, left, expected))
        torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), rtol=1e-4, atol=1e-6)
        if model.hook_points[number].blocks == 1:
            scaled = turned * (before.norm(dim=1, keepdim=True) / turned.norm(dim=1, keepdim=True).clamp_min(1e-9))
            torch.testing.assert_close(after, scaled, rtol=1e-3, atol=1e-4)
        assert float((after - before).abs().max()) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kept_norm_stays_a_number_where_all_neurons_become_zero(dtype: torch.dtype) -> None:
    """As in ReLU models whose chosen neurons are silent on the class that is aimed at."""
    where, silent = PromptPositions(), torch.zeros(KNOWN + 2, 2)
    where.offsets = torch.tensor([[-1]])
    overrides = CalibrationConfig(edit="clamp", keep_norm=True)
    shift = Shift(TokenWindow(where, KNOWN, None, None), torch.tensor([0, 1]), silent + 1, silent, 1.0, overrides)
    left = shift(Activations(torch.full((1, 2), 5.0, dtype=dtype)))
    assert left is None or left.isfinite().all()


@pytest.mark.parametrize("layers", [(0, 0), (1, 2), (2, 9)])
def test_exactly_the_chosen_layers_move(one_of_each: ChatModel, layers: tuple[int, int]) -> None:
    check_batch(one_of_each, layers=layers)


@pytest.mark.parametrize(
    ("knob", "values"),
    [
        ("subset", ["all", "", None]),
        ("direction", ["mean", None]),
        ("edit", ["scale", None]),
        ("prompt_positions", [-1, 2.5, "some", None]),
        ("generated_tokens", [-1, 2.5, "template", None]),
        ("layers", [(2, 1), (-1, 2), (1,), (0, 1, 2), (1.5, 2)]),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_knob(model: ChatModel, knob: str, values: list[object]) -> None:
    neurons, plain = neuron_set(model), logits(model)
    for value in values:
        options: dict[str, Any] = {knob: value}
        with (
            pytest.raises(SafetyNeuronsError, match=f"(?i){knob}"),
            calibrate(model, neurons, toward="rejection", alpha=1.0, **options),
        ):
            pass
    assert torch.equal(logits(model), plain)


def test_a_template_longer_than_the_known_positions_needs_the_pooled_direction(model: ChatModel) -> None:
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}" + "<|end|>" * (KNOWN + 1)
    with (
        pytest.raises(SafetyNeuronsError, match=rf"{KNOWN}.*{KNOWN + 1}.*pool"),
        calibrate(model, neuron_set(model), toward="rejection", alpha=1.0, prompt_positions="template"),
    ):
        pass


def test_only_the_chosen_sequences_of_a_batch_move(one_of_each_tunable: ChatModel) -> None:
    model, neurons = one_of_each_tunable, neuron_set(one_of_each_tunable)
    assert neurons.directions is not None
    overrides = CalibrationConfig(**EVERYWHERE)
    plain = [logits(model), generated(model)]
    with follow_positions(model.model) as where:
        window = open_window(where, model, neurons.directions, overrides)
        with activation_hooks(shifts(model, neurons, window, "rejection", 2.0, overrides)):
            every = [logits(model), generated(model)]
            for chosen in itertools.product([False, True], repeat=len(TEXTS)):
                window.choose(torch.tensor(chosen))
                for found, without, moved in zip((logits(model), generated(model)), plain, every, strict=True):
                    for row, is_chosen in enumerate(chosen):
                        assert torch.equal(bits(found[row]), bits((moved if is_chosen else without)[row]))
                        assert not torch.allclose(moved[row], without[row], atol=1e-2)
            window.choose(torch.zeros(len(TEXTS), dtype=torch.bool))
            assert torch.equal(bits(logits(model)), bits(plain[0]))


class CountingWindow(TokenWindow):
    found = 0

    def _find(self) -> CalibratedTokens | None:
        self.found += 1
        return super()._find()


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_the_tokens_are_worked_out_once_a_pass(model: ChatModel, use_cache: bool) -> None:
    neurons, overrides = neuron_set(model), CalibrationConfig()
    with follow_positions(model.model) as where:
        window = CountingWindow(where, KNOWN, 2, 1)
        with activation_hooks(shifts(model, neurons, window, "rejection", 2.0, overrides)):
            generated(model, use_cache=use_cache)
    assert window.found == 4


def test_choosing_other_sequences_counts_from_the_running_pass_on() -> None:
    where = PromptPositions()
    where.offsets = torch.tensor([[-2, -1], [-2, -1]])
    window = TokenWindow(where, KNOWN, 1, 0)
    seen = []
    for chosen in ([True, True], [True, False], [False, False], [False, True]):
        window.choose(torch.tensor(chosen))
        tokens = window.tokens()
        seen.append(None if tokens is None else tokens.steps.tolist())
    window.defer(lambda: torch.tensor([False, False]))
    assert window.tokens() is None
    row, none = [-1, KNOWN], [-1, -1]
    assert seen == [[row, row], [row, none], None, [none, row]]


def test_passes_behind_the_answers_window_do_not_look_at_the_offsets() -> None:
    where = PromptPositions()
    # Whoever computes with it fails.
    where.offsets, where.generated = cast(Tensor, object()), 2
    for answer in (0, 1, 2):
        assert TokenWindow(where, KNOWN, None, answer).tokens() is None
    for more in (3, None):
        with pytest.raises(TypeError):
            TokenWindow(where, KNOWN, None, more).tokens()
