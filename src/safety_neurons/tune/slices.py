"""The trainable slices: parameters of their own, in float32, over a frozen base of any dtype.

A neuron owns its rows of the read matrices (gate and up, with their biases) and its column of the write matrix. The
slices are added to the base's results by hooks, so gradients and optimizer state exist for them alone, and nothing
else can move.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find.neuron_set import NeuronSet
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.sites import DenseSite, device_of, has_plain_weight, rows_by_neuron

DeltaTensors = dict[str, Tensor]


def trainable_sites(model: ChatModel, neurons: NeuronSet) -> Iterator[tuple[str, DenseSite, Tensor]]:
    """(prefix of the slices' names, site, indices) of every site that has chosen neurons.

    Raises:
        SafetyNeuronsError: the rows that feed some of the neurons are not known, or their weights are packed or
            elsewhere, so they cannot be tuned.
    """
    for number, (site, indices) in enumerate(zip(model.sites, neurons.both, strict=True)):
        if not len(indices):
            continue
        if not isinstance(site, DenseSite) or not site.reads:
            raise SafetyNeuronsError(
                f"The neurons of {site.name} can be found, explained and calibrated, but not tuned yet: "
                "only MLPs that are no mixture of experts, and whose read matrices are known, can."
            )
        for module in (site.write, *(read.module for read in site.reads)):
            if not has_plain_weight(module):
                raise SafetyNeuronsError(
                    f"The neurons of {site.name} cannot be tuned: their weights are quantized or not in memory. Load "
                    "the model without quantize, on devices that hold all of it."
                )
        yield f"site{number}", site, indices


def empty_delta(model: ChatModel, neurons: NeuronSet) -> DeltaTensors:
    """Zeros for every slice: `site{s}_read{j}_weight` and `site{s}_write` [neurons, hidden], biases [neurons]."""
    tensors: DeltaTensors = {}
    for prefix, site, indices in trainable_sites(model, neurons):
        hidden = rows_by_neuron(site.write).shape[1]
        tensors[f"{prefix}_write"] = torch.zeros(len(indices), hidden)
        for number, read in enumerate(site.reads):
            tensors[f"{prefix}_read{number}_weight"] = torch.zeros(len(indices), hidden)
            if getattr(read.module, "bias", None) is not None:
                tensors[f"{prefix}_read{number}_bias"] = torch.zeros(len(indices))
    return tensors


@contextlib.contextmanager
def slices_added(model: ChatModel, neurons: NeuronSet, delta: DeltaTensors | nn.ParameterDict) -> Iterator[None]:
    """Add the slices' part to every forward pass while the context is open; gradients flow into `delta`."""
    with contextlib.ExitStack() as stack:
        for prefix, site, indices in trainable_sites(model, neurons):
            _hook_reads(stack, prefix, site, indices, delta)
            _hook_write(stack, prefix, site, indices, delta)
        yield


def _hook_reads(
    stack: contextlib.ExitStack, prefix: str, site: DenseSite, indices: Tensor, delta: DeltaTensors | nn.ParameterDict
) -> None:
    for number, read in enumerate(site.reads):
        # A large model has layers on several devices; the slices follow each layer's results.
        device = device_of(read.module)
        weight = delta[f"{prefix}_read{number}_weight"].to(device)
        bias = delta.get(f"{prefix}_read{number}_bias", None)
        bias = None if bias is None else bias.to(device)
        rows = (indices + read.offset).to(device)

        def add(
            _module: nn.Module,
            args: tuple[Tensor, ...],
            output: Tensor,
            weight: Tensor = weight,
            bias: Tensor | None = bias,
            rows: Tensor = rows,
        ) -> Tensor:
            return output.index_add(-1, rows, functional.linear(args[0].float(), weight, bias).to(output.dtype))

        stack.callback(read.module.register_forward_hook(add).remove)


def _hook_write(
    stack: contextlib.ExitStack, prefix: str, site: DenseSite, indices: Tensor, delta: DeltaTensors | nn.ParameterDict
) -> None:
    device = device_of(site.write)
    weight, columns = delta[f"{prefix}_write"].to(device), indices.to(device)

    def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + (args[0][..., columns].float() @ weight).to(output.dtype)

    stack.callback(site.write.register_forward_hook(add).remove)
