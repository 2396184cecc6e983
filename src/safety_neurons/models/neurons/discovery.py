"""Where a model keeps its MLP neurons: found by what the modules do, then checked on a dummy input."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.neurons.ablation import check_identity, find_reads, fold, observe
from safety_neurons.models.neurons.experts import ExpertHookPoint, expert_layout
from safety_neurons.models.neurons.hook_points import DenseHookPoint, HookPoint, is_matrix, matrix_shape
from safety_neurons.models.neurons.quantized import without_rounding
from safety_neurons.models.neurons.trace import (
    ModuleCall,
    UnreadableLayer,
    mixers,
    mixes_positions,
    norms,
    only_run,
    reads_no_residual_stream,
    trace_layers,
)

OVERRIDES = (
    "If you know which matrices write its MLP to the residual stream, name them (--write-matrices, a pattern such as "
    "'model.layers.*.mlp.down_proj'); to go on without the layers that cannot be read, pass --allow-partial."
)


@dataclass(frozen=True)
class Coverage:
    """How much of the model's MLPs is read. `without_mlp` layers have none: only attention, a state space ..."""

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
        write_matrices: a pattern for the names of the matrices that write the MLPs' neurons to the residual stream.
            In the layers where it fits some, these are taken (and checked) and nothing else is looked for.
        allow_partial: leave layers out that cannot be read.

    Raises:
        SafetyNeuronsError: a layer's neurons cannot be found or do not pass the check, or there are none at all.
    """
    names = {module: name for name, module in model.named_modules()}
    hook_points: list[HookPoint] = []
    unread: list[str] = []
    read_layers = empty = 0
    with torch.no_grad():
        calls = trace_layers(model)
        for index, (layer, runs) in enumerate(calls.items()):
            try:
                call = only_run(runs)
                with without_rounding(layer):
                    found = (
                        _layer_sites(index, call, names, _residual_size(model, call), write_matrices) if call else []
                    )
            except UnreadableLayer as problem:
                message = f"Layer {index} of {type(model).__name__} ({names[layer]}) cannot be read: {problem}."
                if not allow_partial:
                    raise SafetyNeuronsError(f"{message} {OVERRIDES}") from None
                unread.append(message)
                continue
            hook_points += found
            read_layers += bool(found)
            empty += not found
    if (
        write_matrices is not None
        and not unread
        and not any(fnmatchcase(hook_point.name, write_matrices) for hook_point in hook_points)
    ):
        raise SafetyNeuronsError(
            f"The pattern {write_matrices!r} names no matrix of {type(model).__name__} that writes an MLP to the "
            f"residual stream. Without a pattern, {hook_points[0].name if hook_points else 'none'} is found first."
        )
    if not hook_points:
        reason = unread[0] if unread else "None of its layers has an MLP whose neurons could be read."
        raise SafetyNeuronsError(f"No neurons were found in {type(model).__name__}. {reason}")
    neurons = sum(hook_point.width for hook_point in hook_points)
    return tuple(hook_points), Coverage(read_layers, len(calls) - empty, empty, neurons, tuple(unread))


def _residual_size(model: PreTrainedModel, layer: ModuleCall) -> int:
    """The size of one residual stream; some models keep several, side by side in one tensor."""
    assert layer.input is not None
    size = layer.input.shape[-1]
    configured = getattr(model.config.get_text_config(), "hidden_size", None) or size
    return configured if size % configured == 0 else size


def _layer_sites(
    index: int, layer: ModuleCall, names: dict[nn.Module, str], hidden: int, write_matrices: str | None
) -> list[HookPoint]:
    mixing = {module for mixer in mixers(layer, hidden) for module in mixer.modules()}
    # What a norm computes scales the residual stream for its reader; it writes nothing.
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
            raise UnreadableLayer(f"{names[write]} fits the pattern, and does not write to the residual stream")
        if matrix_shape(write)[1] == hidden:
            dense = DenseHookPoint(index, names[write], matrix_shape(write)[0], write)
            candidates.append(replace(dense, reads=find_reads(layer, dense, matrices, names, hidden)))
    hook_points = _checked(layer, calls, candidates, norming)
    if not named:
        known = {module for hook_point in hook_points for module in _modules(hook_point)}
        experts = {hook_point.blocks for hook_point in hook_points if isinstance(hook_point, ExpertHookPoint)}
        _check_complete(layer, known | mixing, experts, names, hidden)
    return hook_points


def _modules(hook_point: HookPoint) -> tuple[nn.Module, ...]:
    """The modules whose weights are the site's neurons; the one that writes comes first."""
    if isinstance(hook_point, DenseHookPoint):
        return (hook_point.write, *(read.module for read in hook_point.reads))
    assert isinstance(hook_point, ExpertHookPoint)
    return tuple(hook_point.experts.modules())


def _is_position_wise(calls: list[ModuleCall], hook_point: DenseHookPoint) -> bool:
    """Whether a module around the write matrix, and so its activations, sees each token by itself."""
    around = [call for call in calls if any(inner.module is hook_point.write for inner in call.walk())]
    return any(not mixes_positions(call) for call in around)


def _checked(
    layer: ModuleCall, calls: list[ModuleCall], candidates: list[HookPoint], norming: set[nn.Module]
) -> list[HookPoint]:
    """The candidates with the scale of their writes; raises where one does not pass the check."""
    if not candidates:
        return []
    full, silent = observe(layer, norming), observe(layer, norming, tuple(candidates))
    if experts := [hook_point for hook_point in candidates if isinstance(hook_point, ExpertHookPoint)]:
        check_identity(layer, experts, full, silent)
    hook_points: list[HookPoint] = []
    failed: dict[nn.Module, UnreadableLayer] = {}
    for hook_point in candidates:
        try:
            if (
                isinstance(hook_point, DenseHookPoint)
                and not hook_point.reads
                and not _is_position_wise(calls, hook_point)
            ):
                raise UnreadableLayer(f"{hook_point.name} may write what attention gathered from other tokens")
            folded = fold(layer, hook_point, full, silent)
        except UnreadableLayer as problem:
            failed[_modules(hook_point)[0]] = problem
        else:
            hook_points.append(replace(hook_point, post_norm=folded.post_norm, scale=folded.scale))
    reads = {module for hook_point in hook_points for module in _modules(hook_point)[1:]}
    for module, reason in failed.items():
        # A square matrix that reads looks like one that writes, until it is checked.
        if module not in reads:
            raise reason
    return hook_points


def _check_complete(
    layer: ModuleCall, known: set[nn.Module], experts: set[int], names: dict[nn.Module, str], hidden: int
) -> None:
    """Nothing of the layer is left unread that could write to the residual stream.

    `experts` are the numbers of experts of its routed sites: what has a side of that length is their router.
    """
    called = {layer.module, *(call.module for call in layer.walk())}
    for child in [layer.module, *layer.module.children()]:
        if called.isdisjoint(child.modules()):
            continue  # It takes no part in text generation: the cross-attention of a decoder that stands alone.
        for owner in [child] if child is layer.module else child.modules():
            for name, value in owner.named_parameters(recurse=False):
                # What has no side as long as the residual stream cannot write to it.
                writes = value.dim() > 1 and hidden in value.shape and experts.isdisjoint(value.shape)
                if writes and owner not in known and not is_matrix(owner):
                    raise UnreadableLayer(f"{names[owner]}.{name} is neither attention nor an MLP's matrix")
                if is_matrix(owner) and owner not in known and matrix_shape(owner)[1] == hidden:
                    problem = "is no MLP's matrix" if owner in called else "did not run on the dummy input"
                    raise UnreadableLayer(f"{names[owner]} may write to the residual stream, and {problem}")
