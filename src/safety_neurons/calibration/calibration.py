"""Calibration (the paper's ActCali, a form of activation steering) of the safety neurons: the causal test.

The paper's e' = e + alpha * d in neuron space: a_i += alpha * (mean a_i(B) - mean a_i(H)) toward conformity, and the
reverse toward rejection (section 3.3), where B are benign and H harmful prompts. Toward rejection it also guards.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from safety_neurons.calibration.config import (
    AnswerReach,
    CalibrationConfig,
    Direction,
    Edit,
    PromptReach,
    Subset,
    Toward,
)
from safety_neurons.calibration.shift import Shift, TokenWindow
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import PromptPositions, follow_positions
from safety_neurons.models.neurons.hook_points import HookPoint, activation_hooks
from safety_neurons.neurons.neuron_set import Directions, NeuronSet
from safety_neurons.neurons.scores import NeuronValues


@contextlib.contextmanager
def calibrate(
    model: ChatModel,
    neurons: NeuronSet,
    *,
    toward: Toward,
    alpha: float,
    subset: Subset = "both",
    prompt_positions: PromptReach = 5,
    generated_tokens: AnswerReach = 0,
    direction: Direction = "position",
    edit: Edit = "add",
    keep_norm: bool = False,
    layers: tuple[int, int] | None = None,
) -> Iterator[ChatModel]:
    """Calibrate the neurons while the context is open; the model itself is left as it was.

    Args:
        toward: "rejection" makes benign prompts refused, "conformity" makes harmful prompts answered.
        alpha: how many times the difference of the mean activations is added. 0 changes no bit.
        subset: which of the neurons: "rejection", "conformity", or "both".
        prompt_positions: at how many positions at the prompt's end; 0 leaves the prompt alone, "template" takes what
            the chat template puts after the user's words, "all" the whole prompt (before the positions for which
            directions are known, with their mean).
        generated_tokens: also while that many of the first generated tokens are read, or "all"; they use the
            direction of the prompt's last position, which is the one that produces the first token.
        direction: each "position" its own, or one that is "pooled" over the known positions.
        edit: "add" the difference alpha times, or "clamp": go the share alpha of the way from what the activation is
            to the mean of the class that is aimed at, which 1 makes it.
        keep_norm: scale the calibrated neurons of a layer back to the length that they had together, token by token.
        layers: the first and the last layer that are calibrated; all when left out.

    Raises:
        SafetyNeuronsError: the neurons came without directions or belong to a model of another shape, or a knob's
            value is not allowed or reaches further than the directions.
    """
    knobs = CalibrationConfig(subset, prompt_positions, generated_tokens, direction, edit, keep_norm, layers)
    directions = directions_of(model, neurons)
    with follow_positions(model.model) as where:
        window = open_window(where, model, directions, knobs)
        with activation_hooks(shifts(model, neurons, window, toward, alpha, knobs)):
            yield model


def directions_of(model: ChatModel, neurons: NeuronSet) -> Directions:
    """The neurons' directions.

    Raises:
        SafetyNeuronsError: they have none, or belong to a model of another shape.
    """
    if neurons.directions is None:
        raise SafetyNeuronsError("These neurons have no directions. Load them with directions=, or run find again.")
    neurons.check_fits(model)
    return neurons.directions


def open_window(
    where: PromptPositions, model: ChatModel, directions: Directions, config: CalibrationConfig
) -> TokenWindow:
    """The tokens to calibrate.

    Raises:
        SafetyNeuronsError: the config needs directions for more positions than are known.
    """
    known = directions.positions
    reach = model.template_tail if config.prompt_positions == "template" else config.prompt_positions
    if isinstance(reach, int) and reach > known and config.direction == "position":
        raise SafetyNeuronsError(
            f"Directions are known for the last {known} prompt positions, not for {reach}. Run find with more "
            "positions, or pool the directions."
        )
    answer = None if config.generated_tokens == "all" else config.generated_tokens
    return TokenWindow(where, known, None if reach == "all" else reach, answer)


def shifts(
    model: ChatModel, neurons: NeuronSet, window: TokenWindow, toward: Toward, alpha: float, config: CalibrationConfig
) -> list[tuple[HookPoint, Shift]]:
    """A hook for every hook point that has neurons to calibrate."""
    directions = directions_of(model, neurons)
    if toward not in get_args(Toward):
        raise SafetyNeuronsError(f"toward must be {' or '.join(get_args(Toward))}, not {toward!r}.")
    if not math.isfinite(alpha):
        raise SafetyNeuronsError(f"alpha must be a finite number, not {alpha}.")
    first, last = config.layers or (0, max(neurons.layers))
    if first > max(neurons.layers):
        raise SafetyNeuronsError(f"There is no layer {first}: the layers are 0 to {max(neurons.layers)}.")
    hooks = []
    for hook_point, indices, harmful, benign in zip(
        model.hook_points, getattr(neurons, config.subset), directions.harmful, directions.benign, strict=True
    ):
        if len(indices) and first <= hook_point.layer <= last:
            away, target = (harmful, benign) if toward == "conformity" else (benign, harmful)
            rows = [table(means, config.direction) for means in (away, target)]
            hooks.append((hook_point, Shift(window, indices, rows[0], rows[1], alpha, config)))
    return hooks


def table(means: Tensor, direction: Direction) -> Tensor:
    """Means by position [positions, neurons] as a table for a `TokenWindow` [positions + 2, neurons]."""
    pooled = means.mean(0, keepdim=True)
    if direction == "pooled":
        return pooled.expand(len(means) + 2, -1)
    return torch.cat([pooled, means, means[-1:]])


def dose(neurons: NeuronSet, norms: NeuronValues, config: CalibrationConfig | None = None) -> float:
    """The summed length of all shifts at the last position of the prompt, per unit of alpha.

    That is the sum over the neurons of |mean a_i(B) - mean a_i(H)| * ||r_i||_2, their write-contrast scores, so sets of
    neurons can be compared at equal doses. Only the config's subset and layers matter.
    """
    assert neurons.directions is not None
    config = config or CalibrationConfig()
    first, last = config.layers or (0, max(neurons.layers))
    means = zip(neurons.directions.harmful, neurons.directions.benign, norms, strict=True)
    lengths = [(benign[-1] - harmful[-1]).abs() * norm for harmful, benign, norm in means]
    chosen = zip(neurons.layers, getattr(neurons, config.subset), lengths, strict=True)
    return sum((float(length[indices].sum()) for layer, indices, length in chosen if first <= layer <= last), 0.0)


def digest(neurons: NeuronSet) -> str:
    """SHA-256 of the neurons and of what is added to them."""
    assert neurons.directions is not None
    content = hashlib.sha256()
    for tensor in (*neurons.both, *neurons.directions.harmful, *neurons.directions.benign):
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()
