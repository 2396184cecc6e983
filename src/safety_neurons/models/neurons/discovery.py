"""Finds the hook points of a model from what its modules compute, and checks them on a dummy input."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.neurons.ablation import check_identity, find_reads, fold, observe
from safety_neurons.models.neurons.experts import ExpertHookPoint, expert_layout
from safety_neurons.models.neurons.hook_points import (
    DenseHookPoint,
    HookPoint,
    is_matrix,
    matrix_shape,
    without_rounding,
)
from safety_neurons.models.neurons.trace import (
    ModuleCall,
    UnreadableLayer,
    mixers,
    mixes_positions,
    norms,
    only_call,
    reads_no_residual_stream,
    trace_layers,
)

OVERRIDES = (
    "If you know which matrices write its MLP to the residual stream, name them with write_matrices (a pattern such as "
    "'model.layers.*.mlp.down_proj'); to skip the layers that cannot be read, set allow_partial."
)


@dataclass(frozen=True)
class Coverage:
    """How much of a model's MLPs is read. `without_mlp` counts layers of attention or a state space only."""

    layers: int
    layers_total: int
    without_mlp: int
    neurons: int
    unread: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.layers}/{self.layers_total} layers, {self.neurons:,} neurons"
        if self.without_mlp:
            text += f" ({self.without_mlp} layers have no MLP)"
        if self.unread:
            text += f" (PARTIAL: {len(self.unread)} layers are not read)"
        return text


def find_neurons(
    model: PreTrainedModel, *, write_matrices: str | None = None, allow_partial: bool = False
) -> tuple[tuple[HookPoint, ...], Coverage]:
    """Find and check the neurons of every layer.

    Args:
        write_matrices: a name pattern of the matrices that write the MLPs to the residual stream. In layers where it
            matches, only the matched matrices are used (and checked).
        allow_partial: skip layers that cannot be read.

    Raises:
        SafetyNeuronsError: the neurons of a layer are not found or fail the check, or there are none at all.
    """
    names = {module: name for name, module in model.named_modules()}
    points: list[HookPoint] = []
    unread: list[str] = []
    read_layers = empty = 0
    with torch.no_grad():
        calls = trace_layers(model)
        for index, (layer, runs) in enumerate(calls.items()):
            try:
                call = only_call(runs)
                with without_rounding(layer):
                    size = _residual_size(model, call) if call else 0
                    found = _layer_points(index, call, names, size, write_matrices) if call else []
            except UnreadableLayer as problem:
                message = f"Layer {index} of {type(model).__name__} ({names[layer]}) cannot be read: {problem}."
                if not allow_partial:
                    raise SafetyNeuronsError(f"{message} {OVERRIDES}") from None
                unread.append(message)
                continue
            points += found
            read_layers += bool(found)
            empty += not found
    matched = write_matrices is None or any(fnmatchcase(point.name, write_matrices) for point in points)
    if not matched and not unread:
        raise SafetyNeuronsError(
            f"The pattern {write_matrices!r} matches no matrix of {type(model).__name__} that writes an MLP to the "
            f"residual stream. Without a pattern, {points[0].name if points else 'none'} is found first. Correct "
            "write_matrices, or omit it."
        )
    if not points:
        reason = unread[0] if unread else "None of its layers has an MLP whose neurons could be read."
        raise SafetyNeuronsError(f"No neurons were found in {type(model).__name__}. {reason}")
    neurons = sum(point.width for point in points)
    return tuple(points), Coverage(read_layers, len(calls) - empty, empty, neurons, tuple(unread))


def _residual_size(model: PreTrainedModel, layer: ModuleCall) -> int:
    """The size of one residual stream; some models hold several side by side in one tensor."""
    assert layer.input is not None
    size = layer.input.shape[-1]
    configured = getattr(model.config.get_text_config(), "hidden_size", None) or size
    return configured if size % configured == 0 else size


def _layer_points(
    index: int, layer: ModuleCall, names: dict[nn.Module, str], hidden: int, write_matrices: str | None
) -> list[HookPoint]:
    mixing = {module for mixer in mixers(layer, hidden) for module in mixer.modules()}
    # A norm scales the residual stream for its reader and writes nothing.
    norming = norms(layer)
    mixing |= {module for norm in norming for module in norm.modules()} | reads_no_residual_stream(layer)
    calls = [call for call in layer.walk() if call.module not in mixing]
    matrices = [module for module in dict.fromkeys(call.module for call in calls) if is_matrix(module)]
    candidates: list[HookPoint] = [
        ExpertHookPoint(index, names[module], layout.count * layout.inner, module, layout)
        for module in dict.fromkeys(call.module for call in calls)
        if (layout := expert_layout(module))
    ]
    named = [write for write in matrices if write_matrices and fnmatchcase(names[write], write_matrices)]
    for write in named or matrices:
        if write in named and matrix_shape(write)[1] != hidden:
            raise UnreadableLayer(f"{names[write]} matches the pattern, but does not write to the residual stream")
        if matrix_shape(write)[1] == hidden:
            dense = DenseHookPoint(index, names[write], matrix_shape(write)[0], write)
            candidates.append(replace(dense, reads=find_reads(layer, dense, matrices, names, hidden)))
    points = _checked(layer, calls, candidates, norming)
    if not named:
        covered = {module for point in points for module in _modules(point)}
        experts = {point.blocks for point in points if isinstance(point, ExpertHookPoint)}
        _check_complete(layer, covered | mixing, experts, names, hidden)
    return points


def _modules(point: HookPoint) -> tuple[nn.Module, ...]:
    """The modules with the weights of the neurons, the one that writes first."""
    if isinstance(point, DenseHookPoint):
        return (point.write, *(read.module for read in point.reads))
    assert isinstance(point, ExpertHookPoint)
    return tuple(point.experts.modules())


def _is_position_wise(calls: list[ModuleCall], point: DenseHookPoint) -> bool:
    """Whether a module around the write matrix processes each token by itself."""
    around = [call for call in calls if any(inner.module is point.write for inner in call.walk())]
    return any(not mixes_positions(call) for call in around)


def _checked(
    layer: ModuleCall, calls: list[ModuleCall], candidates: list[HookPoint], norming: set[nn.Module]
) -> list[HookPoint]:
    """The candidates with the scale of their writes; raises UnreadableLayer if one fails the check."""
    if not candidates:
        return []
    full, silent = observe(layer, norming), observe(layer, norming, tuple(candidates))
    if experts := [point for point in candidates if isinstance(point, ExpertHookPoint)]:
        check_identity(layer, experts, full, silent)
    points: list[HookPoint] = []
    failed: dict[nn.Module, UnreadableLayer] = {}
    for point in candidates:
        try:
            if isinstance(point, DenseHookPoint) and not point.reads and not _is_position_wise(calls, point):
                raise UnreadableLayer(f"{point.name} may write what attention read from other tokens")
            folded = fold(layer, point, full, silent)
        except UnreadableLayer as problem:
            failed[_modules(point)[0]] = problem
        else:
            points.append(replace(point, post_norm=folded.post_norm, scale=folded.scale))
    reads = {module for point in points for module in _modules(point)[1:]}
    for module, reason in failed.items():
        # A square input projection looks like a write matrix until it is checked.
        if module not in reads:
            raise reason
    return points


def _check_complete(
    layer: ModuleCall, covered: set[nn.Module], experts: set[int], names: dict[nn.Module, str], hidden: int
) -> None:
    """Check that every parameter that could write to the residual stream is covered.

    `experts` holds the numbers of experts of the layer's hook points: a matrix with a side of that length is a router.
    """
    called = {layer.module, *(call.module for call in layer.walk())}
    for child in [layer.module, *layer.module.children()]:
        if called.isdisjoint(child.modules()):
            continue  # It takes no part in text generation, like the cross-attention of a stand-alone decoder.
        for owner in [child] if child is layer.module else child.modules():
            for name, value in owner.named_parameters(recurse=False):
                # A parameter without a side of the hidden size cannot write to the residual stream.
                writes = value.dim() > 1 and hidden in value.shape and experts.isdisjoint(value.shape)
                if writes and owner not in covered and not is_matrix(owner):
                    raise UnreadableLayer(f"{names[owner]}.{name} belongs neither to attention nor to an MLP")
                if is_matrix(owner) and owner not in covered and matrix_shape(owner)[1] == hidden:
                    problem = "is not a matrix of an MLP" if owner in called else "did not run on the dummy input"
                    raise UnreadableLayer(f"{names[owner]} may write to the residual stream, but {problem}")
