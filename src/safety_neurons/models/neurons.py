"""Where a model keeps its MLP neurons: found by what the modules do, then checked on a dummy input.

A neuron's activation is an entry of the input of the matrix that writes to the residual stream
(`down_proj`, `fc2`, `c_proj` ...), so one forward pre-hook on that matrix serves gated, fused and plain MLPs.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from safety_neurons.errors import SafetyNeuronsError

# A module inside a layer that is called with one of these is attention: it needs other positions, an MLP does not.
ATTENTION_ARGUMENTS = frozenset(
    {"attention_mask", "past_key_values", "past_key_value", "layer_past", "position_embeddings", "alibi"}
)


@dataclass(frozen=True)
class ReadMatrix:
    """One block of rows that feeds the neurons: row `offset + i` of `module` feeds neuron i."""

    name: str
    module: nn.Module
    offset: int


@dataclass(frozen=True)
class NeuronSite:
    """The neurons of one layer: the matrix that writes them to the residual stream, and the rows that read it.

    `scale` is what the block multiplies the write with before it is added: one number, or one number per residual
    dimension where a norm follows the MLP (its gain).
    """

    layer: int
    name: str
    write: nn.Module
    reads: tuple[ReadMatrix, ...]
    width: int
    post_norm: bool = False
    scale: Tensor | float = field(default=1.0, compare=False)

    def write_vectors(self, neurons: Tensor | None = None) -> Tensor:
        """What one unit of each neuron's activation adds to the residual stream: float32 [neurons, hidden]."""
        weight = rows_by_neuron(self.write)
        if neurons is not None:
            weight = weight[neurons.to(weight.device)]
        weight = weight.detach().float()
        return weight * (self.scale.to(weight.device) if isinstance(self.scale, Tensor) else self.scale)

    @cached_property
    def parameters_per_neuron(self) -> int:
        """Weights that belong to one neuron: its column of the write matrix, its rows of the read matrices."""
        count = rows_by_neuron(self.write).shape[1]
        for read in self.reads:
            count += matrix_shape(read.module)[0] + (getattr(read.module, "bias", None) is not None)
        return count


@dataclass(frozen=True)
class Coverage:
    """How much of the model's MLPs is read."""

    layers: int
    layers_total: int
    neurons: int

    def __str__(self) -> str:
        return f"{self.layers}/{self.layers_total} layers, {self.neurons:,} neurons"


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(input, output) size of a linear layer; Conv1D keeps its weight the other way round."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def rows_by_neuron(module: nn.Module) -> Tensor:
    """The write matrix as a view [neurons, hidden]: writing to it writes to the weight."""
    assert isinstance(module.weight, Tensor)
    return module.weight if isinstance(module, Conv1D) else module.weight.T


def rows_by_output(module: nn.Module) -> Tensor:
    """A read matrix as a view [outputs, hidden]: writing to it writes to the weight."""
    assert isinstance(module.weight, Tensor)
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: the outermost module list that is as long as the config says.

    Raises:
        SafetyNeuronsError: there is none.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise SafetyNeuronsError(
        f"The decoder layers of {type(model).__name__} were not found: no module list has {count} entries. "
        "Its architecture cannot be read; a dense decoder-only model in transformers' own layout can."
    )


@dataclass
class _LayerTrace:
    """What one forward pass showed of one layer."""

    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    attention: set[nn.Module] = field(default_factory=set)
    executed: list[nn.Module] = field(default_factory=list)


def find_neurons(model: PreTrainedModel) -> tuple[NeuronSite, ...]:
    """Find and check the neurons of every layer.

    The check runs each layer with and without its neurons' activations: what is lost must be the sum of the
    neurons' contributions, and no weight of the layer outside attention may be left unread.

    Raises:
        SafetyNeuronsError: a layer's neurons cannot be found or do not pass the check.
    """
    layers = decoder_layers(model)
    traces = _trace(model, layers)
    with torch.no_grad():
        return tuple(_site(model, index, layer, traces[index]) for index, layer in enumerate(layers))


def coverage(model: PreTrainedModel, sites: tuple[NeuronSite, ...]) -> Coverage:
    return Coverage(len(sites), len(decoder_layers(model)), sum(site.width for site in sites))


def _trace(model: PreTrainedModel, layers: nn.ModuleList) -> list[_LayerTrace]:
    traces = [_LayerTrace() for _ in layers]
    with contextlib.ExitStack() as stack:
        for layer, trace in zip(layers, traces, strict=True):

            def enter(_module: nn.Module, args: Any, kwargs: Any, trace: _LayerTrace = trace) -> None:
                trace.arguments, trace.keywords = args, kwargs

            stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
            for module in layer.modules():
                if module is layer:
                    continue

                def watch(module: nn.Module, args: Any, kwargs: Any, trace: _LayerTrace = trace) -> None:
                    if ATTENTION_ARGUMENTS & kwargs.keys():
                        trace.attention.add(module)
                    elif is_matrix(module):
                        trace.executed.append(module)

                stack.callback(module.register_forward_pre_hook(watch, with_kwargs=True).remove)
        size = min(model.get_input_embeddings().weight.shape[0], 1000)
        tokens = torch.arange(2, 8, device=model.get_input_embeddings().weight.device)[None] * 7 % size
        with torch.no_grad():
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return traces


def _site(model: PreTrainedModel, index: int, layer: nn.Module, trace: _LayerTrace) -> NeuronSite:
    name_of = {module: name for name, module in model.named_modules()}
    inside_attention = {module for attention in trace.attention for module in attention.modules()}
    matrices = [module for module in trace.executed if module not in inside_attention]
    hidden = model.config.get_text_config().hidden_size
    where = f"Layer {index} of {type(model).__name__} ({name_of[layer]})"
    writes = [module for module in matrices if matrix_shape(module)[1] == hidden]
    if len(writes) != 1:
        found = ", ".join(name_of[module] for module in writes) or "none"
        raise SafetyNeuronsError(
            f"{where}: one matrix must write the MLP's neurons to the residual stream, found: {found}. "
            "Mixture-of-experts and state-space layers cannot be read yet; choose a dense model."
        )
    write = writes[0]
    width = matrix_shape(write)[0]
    reads: list[ReadMatrix] = []
    for module in matrices:
        inputs, outputs = matrix_shape(module)
        if module is not write and inputs == hidden and outputs % width == 0:
            reads += [ReadMatrix(name_of[module], module, part * width) for part in range(outputs // width)]
    known = {id(parameter) for module in [write, *(read.module for read in reads)] for parameter in module.parameters()}
    known |= {id(parameter) for module in inside_attention for parameter in module.parameters()}
    unread = [name for name, value in layer.named_parameters() if value.dim() > 1 and id(value) not in known]
    if unread or not reads:
        raise SafetyNeuronsError(
            f"{where}: these weights are neither attention nor the MLP's neurons: {', '.join(unread) or 'no reads'}. "
            "Part of a model is never read in silence; choose a dense model."
        )
    post_norm, scale, activations = _check_contributions(layer, trace, write, where)
    site = NeuronSite(index, name_of[write], write, tuple(reads), width, post_norm, scale)
    _check_reads(layer, trace, site, activations, where)
    return site


def _run_layer(layer: nn.Module, trace: _LayerTrace) -> Tensor:
    output = layer(*trace.arguments, **trace.keywords)
    return (output if isinstance(output, Tensor) else output[0]).float()


@contextlib.contextmanager
def _write_input(write: nn.Module, replace: bool, seen: list[Tensor]) -> Iterator[None]:
    """Record the write matrix' input, or replace it with zeros."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        seen.append(args[0].detach())
        return (torch.zeros_like(args[0]), *args[1:]) if replace else None

    handle = write.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _check_contributions(
    layer: nn.Module, trace: _LayerTrace, write: nn.Module, where: str
) -> tuple[bool, Tensor | float, Tensor]:
    """Whether a norm follows the MLP, what scales the write, and the activations; raises if they do not add up."""
    seen: list[Tensor] = []
    norms: dict[nn.Module, Tensor] = {}
    writes: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_write_input(write, False, seen))
        stack.callback(write.register_forward_hook(lambda _m, _a, output: writes.append(output.detach())).remove)
        for module in layer.modules():
            if "norm" in type(module).__name__.lower():

                def note(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
                    norms[norm] = args[0].detach()

                stack.callback(module.register_forward_pre_hook(note).remove)
        full = _run_layer(layer, trace)
    with _write_input(write, True, []):
        lost = full - _run_layer(layer, trace)
    after = [norm for norm, given in norms.items() if given.shape == writes[0].shape and torch.equal(given, writes[0])]
    scale: Tensor | float
    if after:
        nothing = write(torch.zeros_like(seen[0]))
        expected = (after[0](writes[0]) - after[0](nothing)).float()
        scale = _gain(after[0], writes[0], where)
    else:
        flat = seen[0].float().reshape(-1, seen[0].shape[-1])
        contributions = (flat @ rows_by_neuron(write).float()).reshape(lost.shape)
        scale = float((lost * contributions).sum() / contributions.pow(2).sum().clamp_min(1e-30))
        scale = 1.0 if abs(scale - 1) < 1e-2 else scale
        expected = contributions * scale
    # What can be seen of the write in the layer's output is limited by the rounding of the residual stream.
    rounding = 8 * torch.finfo(seen[0].dtype).eps * full.abs().max() * lost.numel() ** 0.5
    if (lost - expected).norm() > 1e-2 * lost.norm() + rounding:
        raise SafetyNeuronsError(
            f"{where}: the neurons' contributions do not add up to what the MLP writes (off by "
            f"{float((lost - expected).norm() / lost.norm()):.1%}). The architecture is not one that can be read."
        )
    return bool(after), scale, seen[0]


def _gain(norm: nn.Module, like: Tensor, where: str) -> Tensor:
    """What a norm after the MLP multiplies each residual dimension with, besides its division by the length."""
    ones = torch.ones_like(like[:1, :1])
    gain = norm(ones).float().flatten()
    signs = ones.clone()
    signs[..., ::2] = -1
    if not torch.allclose(norm(signs).float().flatten(), gain * signs.float().flatten(), rtol=1e-2, atol=1e-4):
        raise SafetyNeuronsError(
            f"{where}: the norm after the MLP is no root-mean-square norm, so it cannot be folded."
        )
    return gain


def _check_reads(layer: nn.Module, trace: _LayerTrace, site: NeuronSite, before: Tensor, where: str) -> None:
    """Row i of each read matrix must move activation i and no other."""
    for read in site.reads:
        # A neuron that is switched off by its gate may not move at all; others are tried then.
        for neuron in range(0, site.width, max(1, site.width // 16)):
            moved = _moved_by(layer, trace, site, read, neuron, before)
            if moved:
                break
        if moved != [neuron]:
            raise SafetyNeuronsError(
                f"{where}: row {neuron} of {read.name} moves the activations {moved[:5]}, not {neuron} alone. "
                "The order of the rows in this architecture is not known, so its neurons cannot be tuned."
            )


def _moved_by(
    layer: nn.Module, trace: _LayerTrace, site: NeuronSite, read: ReadMatrix, neuron: int, before: Tensor
) -> list[int]:
    """Which activations change when one neuron's row of a read matrix gives another result."""

    def disturb(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., read.offset + neuron] += 2 * (output.abs().max() + 1)
        return output

    after: list[Tensor] = []
    handle = read.module.register_forward_hook(disturb)
    try:
        with _write_input(site.write, False, after):
            _run_layer(layer, trace)
    finally:
        handle.remove()
    return (before != after[0]).reshape(-1, site.width).any(0).nonzero().flatten().tolist()
