"""Where a model keeps its MLP neurons: found by what the modules do, then checked on a dummy input."""

import fnmatch
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.models.ablation import check_identity, find_reads, fold, observe
from safety_neurons.models.experts import ExpertSite, expert_neurons, is_experts
from safety_neurons.models.quantized import without_rounding
from safety_neurons.models.sites import DenseSite, NeuronSite, is_matrix, matrix_shape
from safety_neurons.models.trace import (
    ModuleCall,
    UnreadableLayer,
    decoder_layers,
    mixers,
    mixes_positions,
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
) -> tuple[tuple[NeuronSite, ...], Coverage]:
    """Find and check the neurons of every layer.

    Args:
        write_matrices: a pattern for the names of the matrices that write the MLPs' neurons to the residual stream,
            where the structure does not tell; they are checked all the same.
        allow_partial: leave layers out that cannot be read.

    Raises:
        SafetyNeuronsError: a layer's neurons cannot be found or do not pass the check, or there are none at all.
    """
    names = {module: name for name, module in model.named_modules()}
    sites: list[NeuronSite] = []
    unread: list[str] = []
    read_layers = empty = 0
    with torch.no_grad():
        calls = trace_layers(model)
        for index, call in enumerate(calls):
            try:
                with without_rounding(call.module):
                    found = _layer_sites(index, call, names, write_matrices)
            except UnreadableLayer as problem:
                message = f"Layer {index} of {type(model).__name__} ({names[call.module]}) cannot be read: {problem}."
                if not allow_partial:
                    raise SafetyNeuronsError(f"{message} {OVERRIDES}") from None
                unread.append(message)
                continue
            sites += found
            read_layers += bool(found)
            empty += not found
    if not sites:
        reason = unread[0] if unread else "None of its layers has an MLP whose neurons could be read."
        raise SafetyNeuronsError(f"No neurons were found in {type(model).__name__}. {reason}")
    neurons = sum(site.width for site in sites)
    return tuple(sites), Coverage(read_layers, len(decoder_layers(model)) - empty, empty, neurons, tuple(unread))


def _layer_sites(
    index: int, layer: ModuleCall, names: dict[nn.Module, str], write_matrices: str | None
) -> list[NeuronSite]:
    assert layer.input is not None
    hidden = layer.input.shape[-1]
    mixing = {module for mixer in mixers(layer, hidden) for module in mixer.modules()}
    calls = [call for call in layer.walk() if call.module not in mixing]
    matrices = [module for module in dict.fromkeys(call.module for call in calls) if is_matrix(module)]
    candidates: list[NeuronSite] = [
        ExpertSite(index, names[module], expert_neurons(module), module)
        for module in dict.fromkeys(call.module for call in calls)
        if is_experts(module)
    ]
    for write in matrices:
        if matrix_shape(write)[1] == hidden and fnmatch.fnmatch(names[write], write_matrices or "*"):
            dense = DenseSite(index, names[write], matrix_shape(write)[0], write)
            candidates.append(replace(dense, reads=find_reads(layer, dense, matrices, names)))
    position_wise = {
        inner.module for call in calls if call.inside and not mixes_positions(call) for inner in call.walk()
    }
    sites = _checked(layer, candidates, position_wise)
    if write_matrices is None:
        known = {module for site in sites for module in _modules(site)}
        _check_complete(layer, known | mixing, matrices, names, hidden)
    return sites


def _modules(site: NeuronSite) -> tuple[nn.Module, ...]:
    """The modules whose weights are the site's neurons; the one that writes comes first."""
    if isinstance(site, DenseSite):
        return (site.write, *(read.module for read in site.reads))
    assert isinstance(site, ExpertSite)
    return (site.experts,)


def _checked(layer: ModuleCall, candidates: list[NeuronSite], position_wise: set[nn.Module]) -> list[NeuronSite]:
    """The candidates with the scale of their writes; raises where one does not pass the check."""
    if not candidates:
        return []
    full, silent = observe(layer), observe(layer, tuple(candidates))
    check_identity(layer, candidates, full)
    sites: list[NeuronSite] = []
    failed: dict[nn.Module, UnreadableLayer] = {}
    for site in candidates:
        module = _modules(site)[0]
        if module not in position_wise and len(_modules(site)) == 1:
            failed[module] = UnreadableLayer(f"{site.name} may write what attention gathered from other tokens")
            continue
        try:
            folded = fold(layer, site, full, silent)
        except UnreadableLayer as problem:
            failed[module] = problem
        else:
            sites.append(replace(site, post_norm=folded.post_norm, scale=folded.scale))
    reads = {module for site in sites for module in _modules(site)[1:]}
    for module, reason in failed.items():
        # A square matrix that reads looks like one that writes, until it is checked.
        if module not in reads:
            raise reason
    return sites


def _check_complete(
    layer: ModuleCall, known: set[nn.Module], matrices: list[nn.Module], names: dict[nn.Module, str], hidden: int
) -> None:
    """Nothing of the layer is left unread that could write to the residual stream."""
    for module in matrices:
        if module not in known and matrix_shape(module)[1] == hidden:
            raise UnreadableLayer(f"{names[module]} writes to the residual stream, and is no MLP's write matrix")
    experts = {module.num_experts for module in known if is_experts(module)}
    called = {layer.module, *(call.module for call in layer.walk())}
    for child in layer.module.children():
        if called.isdisjoint(child.modules()):
            continue  # It takes no part in text generation: the cross-attention of a decoder that stands alone.
        for owner in child.modules():
            for name, value in owner.named_parameters(recurse=False):
                router = value.dim() == 2 and hidden in value.shape and not experts.isdisjoint(value.shape)
                if value.dim() > 1 and owner not in known and not is_matrix(owner) and not router:
                    raise UnreadableLayer(f"{names[owner]}.{name} is neither attention nor an MLP's matrix")
                if is_matrix(owner) and owner not in called and owner not in known:
                    raise UnreadableLayer(f"{names[owner]} did not run on the dummy input, so it cannot be checked")
