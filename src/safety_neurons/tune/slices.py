"""The trainable slices: parameters of their own, in float32, over a frozen base of any dtype and storage format.

A neuron owns its rows of the read matrices (gate and up, with their biases) and its column of the write matrix. The
slices are added to the base's results by hooks, so gradients and optimizer state exist for them alone, and nothing
else can move. They are computed in the dtype of the base: each forward pass casts the small masters, not its inputs.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find.neuron_set import NeuronSet
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.experts import ExpertSite
from safety_neurons.models.sites import DenseSite, device_of, has_plain_weight, matrix_shape
from safety_neurons.tune.expert_slices import expert_slices, like

DeltaTensors = dict[str, Tensor]
TrainableSite = DenseSite | ExpertSite


def trainable_sites(model: ChatModel, neurons: NeuronSet) -> Iterator[tuple[str, TrainableSite, Tensor]]:
    """(prefix of the slices' names, site, indices) of every site that has chosen neurons.

    Raises:
        SafetyNeuronsError: the rows that feed some of the neurons are not known, so they cannot be tuned.
    """
    for number, (site, indices) in enumerate(zip(model.sites, neurons.both, strict=True)):
        if not len(indices):
            continue
        assert isinstance(site, TrainableSite)
        if not (site.reads if isinstance(site, DenseSite) else site.feeding_rows):
            raise SafetyNeuronsError(
                f"The neurons of {site.name} can be found, explained and calibrated, but not tuned: "
                "which rows of its read matrices feed which neuron could not be established."
            )
        yield f"site{number}", site, indices


def empty_delta(model: ChatModel, neurons: NeuronSet) -> DeltaTensors:
    """Zeros for every slice: `site{s}_read{j}_weight` and `site{s}_write` [neurons, hidden], biases [neurons]."""
    tensors: DeltaTensors = {}
    for prefix, site, indices in trainable_sites(model, neurons):
        if isinstance(site, DenseSite):
            hidden = matrix_shape(site.write)[1]
            biased = [getattr(read.module, "bias", None) is not None for read in site.reads]
        else:
            hidden = site.layout.write_vectors(0).shape[1]
            biased = [site.layout.read_blocks(0)[0].bias is not None for _ in site.feeding_rows]
        tensors[f"{prefix}_write"] = torch.zeros(len(indices), hidden)
        for number, has_bias in enumerate(biased):
            tensors[f"{prefix}_read{number}_weight"] = torch.zeros(len(indices), hidden)
            if has_bias:
                tensors[f"{prefix}_read{number}_bias"] = torch.zeros(len(indices))
    return tensors


def digest(delta: DeltaTensors) -> str:
    """A name for exactly these values."""
    found = hashlib.sha256()
    for name, value in sorted(delta.items()):
        found.update(name.encode())
        found.update(value.contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


@contextlib.contextmanager
def slices_added(model: ChatModel, neurons: NeuronSet, delta: DeltaTensors | nn.ParameterDict) -> Iterator[None]:
    """Add the slices' part to every forward pass while the context is open; gradients flow into `delta`.

    The tensors are read anew in each forward pass, so they may be trained while the context is open. With gradient
    checkpointing it must stay open during the backward pass, which runs the layers again.
    """
    with contextlib.ExitStack() as stack:
        for prefix, site, indices in trainable_sites(model, neurons):
            stack.enter_context(added_to_site(site, prefix, indices, delta))
        yield


def added_to_site(
    site: TrainableSite, prefix: str, indices: Tensor, delta: DeltaTensors | nn.ParameterDict
) -> AbstractContextManager[None]:
    """`slices_added` for one site."""
    if isinstance(site, ExpertSite):
        return site.changed(expert_slices(site, prefix, indices, delta))
    return _added_to_dense(site, prefix, indices, delta)


@contextlib.contextmanager
def _added_to_dense(
    site: DenseSite, prefix: str, indices: Tensor, delta: DeltaTensors | nn.ParameterDict
) -> Iterator[None]:
    columns = indices.to(device_of(site.write))
    # A plain matrix returns a tensor of its own, and needs none of it for its gradient: it is added to in place.
    # What packed formats return may be a view that autograd forbids to change.
    fresh = has_plain_weight(site.write)

    def add_write(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        chosen = args[0].index_select(-1, columns.to(args[0].device))
        added = like(chosen @ like(delta[f"{prefix}_write"], chosen), output)
        return output.add_(added) if fresh else output + added

    with contextlib.ExitStack() as stack:
        stack.callback(site.write.register_forward_hook(add_write).remove)
        for number, read in enumerate(site.reads):
            hook = _read_hook(read.module, indices + read.offset, f"{prefix}_read{number}", delta)
            stack.callback(read.module.register_forward_hook(hook).remove)
        yield


def _read_hook(
    module: nn.Module, rows: Tensor, name: str, delta: DeltaTensors | nn.ParameterDict
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    # A large model has layers on several devices; the slices follow each layer's results.
    rows, fresh = rows.to(device_of(module)), has_plain_weight(module)

    def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weight, bias = delta[f"{name}_weight"], delta.get(f"{name}_bias", None)
        added = functional.linear(args[0], like(weight, args[0]), None if bias is None else like(bias, args[0]))
        add_to = output.index_add_ if fresh else output.index_add
        return add_to(-1, rows, like(added, output))

    return add
