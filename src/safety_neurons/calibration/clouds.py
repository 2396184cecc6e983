"""Harmful and benign prompts as two clouds of activations at their last token, before and after calibration.

The paper shows both in the plane of the first two principal components, and how calibration moves one into the other
(section 3.3). Here is such a plane for each layer with safety neurons, and one for all layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from safety_neurons.calibration.calibration import calibrate, directions_of
from safety_neurons.calibration.config import CalibrationConfig, Toward
from safety_neurons.calibration.detector import last_token_activations
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.core.statistics import CONFIDENCE, RESAMPLES, Array
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet

# Each kind of prompts is calibrated toward the other.
AWAY: dict[str, Toward] = {"harmful": "conformity", "benign": "rejection"}
# The prompts of a kind to read, and the layers to keep points of: results stay under 600 KB.
MOST_PROMPTS = 40
MOST_PLANES = 64
# Significant digits of a point.
_DIGITS = 3


def read_clouds(
    model: ChatModel,
    neurons: NeuronSet,
    random: NeuronSet,
    prompts: Mapping[str, Sequence[str]],
    *,
    alphas: Mapping[Toward, float],
    config: CalibrationConfig,
    seed: int = 0,
    batch_size: int = 8,
    advance: Advance = ignore,
) -> list[dict[str, Any]]:
    """Read "harmful" and "benign" test prompts, plain and calibrated: one entry per layer, then one for all layers.

    An entry has its `layer` (None: all) and number of `neurons`; `auroc` and `auroc_random`, how well the safety
    neurons and random ones separate the kinds along the difference of their mean activations on training prompts, with
    bootstrap intervals over prompts; `harmful_half`, the share of each cloud on the harmful side of the midpoint; and,
    for the `MOST_PLANES` layers with the most neurons and for all layers, `explained`, the share of the variance of
    each axis, and the `points` of each cloud (None elsewhere). The plane is fitted to the plain prompts; on both axes
    the harmful ones have the higher mean. In a mixture of experts, means are over the training prompts routed to an
    expert, and prompts that are not routed to it count as zero.

    Raises:
        SafetyNeuronsError: the neurons have no directions or belong to a model of another shape, or activations are not
            finite.
    """
    texts = {side: [model.render(text) for text in prompts[side]] for side in AWAY}
    found, other = neurons.both, random.both
    # In one pass, with the safety neurons of each hook point before the random ones.
    joined = [torch.cat(pair) for pair in zip(found, other, strict=True)]
    mine = torch.cat([torch.arange(len(one) + len(two)) < len(one) for one, two in zip(found, other, strict=True)])
    both = {side: last_token_activations(model, joined, texts[side], batch_size, advance) for side in AWAY}
    clouds = {side: values[:, mine] for side, values in both.items()}
    for side, toward in AWAY.items():
        with calibrate(model, neurons, config, toward=toward, alpha=alphas[toward]):
            # These hooks come after those of the calibration: they see what the write matrix sees.
            clouds[calibrated_name(side)] = last_token_activations(model, found, texts[side], batch_size, advance)
    if not all(bool(values.isfinite().all()) for values in (*both.values(), *clouds.values())):
        raise SafetyNeuronsError(
            f"Some activations of {model.name} at the end of the prompt are not finite. Choose another dtype (float32 "
            "or bfloat16), or lower alpha_conformity and alpha_rejection."
        )
    means, random_means = _means(model, neurons), _means(model, random)
    layer_of, random_layer_of = _layers(neurons), _layers(random)
    layers = sorted(set(layer_of.tolist()))
    drawn = set(sorted(layers, key=lambda layer: (-int((layer_of == layer).sum()), layer))[:MOST_PLANES])
    entries = []
    for layer in (*layers, None):
        own, others = (part == layer if layer is not None else part >= 0 for part in (layer_of, random_layer_of))
        scores = {name: _scores(values[:, own], means[:, own]) for name, values in clouds.items()}
        control = [_scores(both[side][:, ~mine][:, others], random_means[:, others]) for side in AWAY]
        entry: dict[str, Any] = {
            "layer": layer,
            "neurons": int(own.sum()),
            "auroc": separability(scores["harmful"], scores["benign"], seed),
            "auroc_random": separability(control[0], control[1], seed),
            "harmful_half": {name: float((values > 0).mean()) for name, values in scores.items()},
            "explained": None,
            "points": None,
        }
        if layer is None or layer in drawn:
            explained, points = plane({name: values[:, own].double().numpy() for name, values in clouds.items()})
            entry |= {"explained": [round(share, 4) for share in explained], "points": _rounded(points)}
        entries.append(entry)
    return entries


def calibrated_name(side: str) -> str:
    """The name of the cloud of a side's calibrated prompts."""
    return f"{side}_calibrated"


def plane(clouds: Mapping[str, Array]) -> tuple[tuple[float, float], dict[str, Array]]:
    """All clouds [prompts, neurons] in the plane of the first two principal components of "harmful" and "benign".

    Returns the share of the variance that each axis explains, and the points [prompts, 2] of each cloud. Axes point so
    that the mean of the harmful points is not below that of the benign ones.
    """
    base = numpy.concatenate([clouds[side] for side in AWAY])
    center = base.mean(0)
    _, lengths, axes = numpy.linalg.svd(base - center, full_matrices=False)
    # A single neuron has one axis.
    chosen = numpy.zeros((2, base.shape[1]))
    chosen[: len(axes)] = axes[:2]
    apart = chosen @ (clouds["harmful"].mean(0) - clouds["benign"].mean(0))
    chosen[apart < 0] *= -1
    variance = numpy.append(lengths**2, 0.0)
    shares = variance[:2] / (variance.sum() or 1.0)
    return (float(shares[0]), float(shares[1])), {name: (cloud - center) @ chosen.T for name, cloud in clouds.items()}


def separability(harmful: Array, benign: Array, seed: int) -> dict[str, float]:
    """The AUROC of harmful against benign scores (ties count half), with its 95% bootstrap interval over prompts."""
    in_order = (harmful[:, None] > benign) + 0.5 * (harmful[:, None] == benign)
    drawn = numpy.random.default_rng(seed)
    rows, columns = (drawn.multinomial(size, numpy.full(size, 1 / size), RESAMPLES) / size for size in in_order.shape)
    samples = ((rows @ in_order) * columns).sum(1)
    low, high = numpy.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    # Rounding must not carry an end beyond 0 or 1.
    return {"value": float(in_order.mean()), "low": max(0.0, float(low)), "high": min(1.0, float(high))}


def _means(model: ChatModel, neurons: NeuronSet) -> Tensor:
    """Mean activations at the last token of harmful and of benign training prompts: [2, neurons] by hook point."""
    known = directions_of(model, neurons)
    sides = (known.harmful, known.benign)
    return torch.stack(
        [torch.cat([hook_point[-1][own] for hook_point, own in zip(side, neurons.both, strict=True)]) for side in sides]
    )


def _layers(neurons: NeuronSet) -> Tensor:
    """The layer of each neuron, in the order of the hook points."""
    return torch.cat([torch.full((len(own),), layer) for layer, own in zip(neurons.layers, neurons.both, strict=True)])


def _scores(values: Tensor, means: Tensor) -> Array:
    """The projection of activations on the difference of the means [2, neurons]; above 0 is nearer the harmful mean."""
    harmful, benign = means.double()
    scores: Array = ((values.double() - (harmful + benign) / 2) @ (harmful - benign)).numpy()
    return scores


def _rounded(points: Mapping[str, Array]) -> dict[str, dict[str, list[float]]]:
    # Adding 0.0 removes negative zeros.
    return {
        name: {
            axis: [float(f"{value:.{_DIGITS}g}") + 0.0 for value in cloud[:, number].tolist()]
            for number, axis in enumerate("xy")
        }
        for name, cloud in points.items()
    }
