"""Calibration (the paper's ActCali, a form of activation steering) of the safety neurons: the causal test.

The paper's e' = e + alpha * d in neuron space: a_i += alpha * (mean a_i(B) - mean a_i(H)) toward conformity, and the
reverse toward rejection (section 3.3), where B are benign and H harmful prompts. Toward rejection it also guards.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor

from safety_neurons.calibration.config import CalibrationConfig, Direction, Toward
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
    config: CalibrationConfig = CalibrationConfig(),
    *,
    toward: Toward,
    alpha: float | None = None,
    **options: Any,
) -> Iterator[ChatModel]:
    """Calibrate the neurons while the context is open; afterwards the model is unchanged.

    Args:
        toward: "rejection" makes benign prompts refused, "conformity" makes harmful prompts answered.
        alpha: how many times the difference of the mean activations is added. Default: the config's strength toward
            that side. 0 changes no bit.
        options: fields of `CalibrationConfig` that replace those of `config`.

    Raises:
        SafetyNeuronsError: the neurons have no directions or belong to a model of another shape, or an option is not
            allowed or reaches further than the directions.
    """
    config = config.override(options)
    directions = directions_of(model, neurons)
    with follow_positions(model.model, reach=reach_of(model, config)) as where:
        window = open_window(where, model, directions, config)
        strength = config.alpha(toward) if alpha is None else alpha
        with activation_hooks(shifts(model, neurons, window, toward, strength, config)):
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
    known, reach = directions.positions, reach_of(model, config)
    if reach is not None and reach > known and config.direction == "position":
        raise SafetyNeuronsError(
            f"Directions are known for the last {known} prompt positions, not for {reach}. Lower "
            f"calibrate.prompt_positions to {known}, set calibrate.direction to 'pooled', or raise find.positions to "
            f"{reach}."
        )
    answer = None if config.generated_tokens == "all" else config.generated_tokens
    return TokenWindow(where, known, reach, answer)


def reach_of(model: ChatModel, config: CalibrationConfig) -> int | None:
    """Number of tokens at the end of the prompt to calibrate; None means all."""
    if config.prompt_positions == "all":
        return None
    return model.template_tail if config.prompt_positions == "template" else config.prompt_positions


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
        raise SafetyNeuronsError(
            f"There is no layer {first}: the layers are 0 to {max(neurons.layers)}. Correct calibrate.layers."
        )
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
