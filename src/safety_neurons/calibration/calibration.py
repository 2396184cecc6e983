"""How hard a calibration pushes, so that sets of neurons can be compared at equal pushes.

ActCali: move the found neurons' activations along what tells harmful from benign prompts.

The paper's e' = e + alpha * d, exactly, in neuron space: a_i += alpha * (mean a_i(B) - mean a_i(H)) toward conformity,
and the reverse toward rejection (section 3.3). It is the causal test of the neurons, and toward rejection a guard.
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
from safety_neurons.neurons.scores import Layers


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
    with follow_positions(model.model) as where:
        window = open_window(where, model, directions, config)
        strength = config.alpha(toward) if alpha is None else alpha
        with activation_hooks(shifts(model, neurons, window, toward, strength, config)):
            yield model


def directions_of(model: ChatModel, neurons: NeuronSet) -> Directions:
    """The neurons' directions.

    Raises:
        SafetyNeuronsError: they came without, or belong to a model of another shape.
    """
    if neurons.directions is None:
        raise SafetyNeuronsError(
            "These neurons came without directions; load them with directions=, or run find again."
        )
    neurons.check_fits(model)
    return neurons.directions


def open_window(
    where: PromptPositions, model: ChatModel, directions: Directions, knobs: CalibrationConfig
) -> TokenWindow:
    """The tokens that the knobs name.

    Raises:
        SafetyNeuronsError: they need directions for more positions than are known.
    """
    known = directions.positions
    reach = model.template_tail if knobs.prompt_positions == "template" else knobs.prompt_positions
    if isinstance(reach, int) and reach > known and knobs.direction == "position":
        raise SafetyNeuronsError(
            f"Directions are known for the last {known} prompt positions, not for {reach}. Run find with more "
            "positions, or pool the directions."
        )
    answer = None if knobs.generated_tokens == "all" else knobs.generated_tokens
    return TokenWindow(where, known, None if reach == "all" else reach, answer)


def shifts(
    model: ChatModel, neurons: NeuronSet, window: TokenWindow, toward: Toward, alpha: float, knobs: CalibrationConfig
) -> list[tuple[HookPoint, Shift]]:
    """A hook for every site that holds neurons to calibrate."""
    directions = directions_of(model, neurons)
    if toward not in get_args(Toward):
        raise SafetyNeuronsError(f"Calibration leads toward {' or '.join(get_args(Toward))}, not {toward!r}.")
    if not math.isfinite(alpha):
        raise SafetyNeuronsError(f"alpha is a finite number, not {alpha}.")
    first, last = knobs.layers or (0, max(neurons.layers))
    if first > max(neurons.layers):
        raise SafetyNeuronsError(f"There is no layer {first}: the layers are 0 to {max(neurons.layers)}.")
    hooks = []
    for hook_point, indices, harmful, benign in zip(
        model.hook_points, getattr(neurons, knobs.subset), directions.harmful, directions.benign, strict=True
    ):
        if len(indices) and first <= hook_point.layer <= last:
            away, target = (harmful, benign) if toward == "conformity" else (benign, harmful)
            rows = [table(means, knobs.direction) for means in (away, target)]
            hooks.append((hook_point, Shift(window, indices, rows[0], rows[1], alpha, knobs)))
    return hooks


def table(means: Tensor, direction: Direction) -> Tensor:
    """Means by position [positions, neurons] as a table for a `TokenWindow` [positions + 2, neurons]."""
    pooled = means.mean(0, keepdim=True)
    if direction == "pooled":
        return pooled.expand(len(means) + 2, -1)
    return torch.cat([pooled, means, means[-1:]])


def dose(neurons: NeuronSet, norms: Layers, knobs: CalibrationConfig | None = None) -> float:
    """How much calibration adds for each unit of alpha: the summed length of all shifts at the prompt's last position.

    That is the sum over the neurons of |mean a_i(B) - mean a_i(H)| * ||r_i||_2, and so of their write-contrast scores.
    Of the knobs, the subset and the layers say which neurons are pushed; all when left out.
    """
    assert neurons.directions is not None
    total = 0.0
    for layer, indices, harmful, benign, norm in zip(
        neurons.layers,
        getattr(neurons, knobs.subset if knobs else "both"),
        neurons.directions.harmful,
        neurons.directions.benign,
        norms,
        strict=True,
    ):
        if knobs and knobs.layers and not knobs.layers[0] <= layer <= knobs.layers[1]:
            continue
        total += float(((benign[-1] - harmful[-1]).abs() * norm)[indices].sum())
    return total


def digest(neurons: NeuronSet) -> str:
    """A name for exactly these neurons and what is added to them."""
    assert neurons.directions is not None
    content = hashlib.sha256()
    for tensor in (*neurons.both, *neurons.directions.harmful, *neurons.directions.benign):
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()
