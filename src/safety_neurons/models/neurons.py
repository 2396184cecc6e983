"""Where a model keeps its MLP neurons: found by what the modules do, then checked on a dummy input.

A neuron's activation is an entry of the input of the matrix that writes to the residual stream
(`down_proj`, `fc2`, `c_proj` ...), so one forward pre-hook on that matrix serves gated, fused and plain MLPs.
"""

import contextlib
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.models.ablation import LayerTrace, check_contributions, check_reads
from safety_neurons.models.sites import Coverage, NeuronSite, ReadMatrix, decoder_layers, is_matrix, matrix_shape

# A module inside a layer that is called with one of these is attention: it needs other positions, an MLP does not.
ATTENTION_ARGUMENTS = frozenset(
    {"attention_mask", "past_key_values", "past_key_value", "layer_past", "position_embeddings", "alibi"}
)


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


def _trace(model: PreTrainedModel, layers: nn.ModuleList) -> list[LayerTrace]:
    traces = [LayerTrace() for _ in layers]
    with contextlib.ExitStack() as stack:
        for layer, trace in zip(layers, traces, strict=True):

            def enter(_module: nn.Module, args: Any, kwargs: Any, trace: LayerTrace = trace) -> None:
                trace.arguments, trace.keywords = args, kwargs

            stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
            for module in layer.modules():
                if module is layer:
                    continue

                def watch(module: nn.Module, args: Any, kwargs: Any, trace: LayerTrace = trace) -> None:
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


def _site(model: PreTrainedModel, index: int, layer: nn.Module, trace: LayerTrace) -> NeuronSite:
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
    post_norm, scale, activations = check_contributions(layer, trace, write, where)
    site = NeuronSite(index, name_of[write], write, tuple(reads), width, post_norm, scale)
    check_reads(layer, trace, site, activations, where)
    return site
