"""The check of what was found: a layer is run with and without its neurons, and what is lost must be their sum."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.models.sites import NeuronSite, ReadMatrix, rows_by_neuron


@dataclass
class LayerTrace:
    """What one forward pass showed of one layer."""

    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    attention: set[nn.Module] = field(default_factory=set)
    executed: list[nn.Module] = field(default_factory=list)


def _run_layer(layer: nn.Module, trace: LayerTrace) -> Tensor:
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


def check_contributions(
    layer: nn.Module, trace: LayerTrace, write: nn.Module, where: str
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


def check_reads(layer: nn.Module, trace: LayerTrace, site: NeuronSite, before: Tensor, where: str) -> None:
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
    layer: nn.Module, trace: LayerTrace, site: NeuronSite, read: ReadMatrix, neuron: int, before: Tensor
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
