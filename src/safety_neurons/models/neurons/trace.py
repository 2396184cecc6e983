"""Traces the module calls of each decoder layer in a forward pass on a dummy input."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.neurons.experts import expert_layout
from safety_neurons.models.neurons.hook_points import device_of, is_matrix

# Two different sequences, to detect layers whose rows are not ordered [batch, tokens].
DUMMY_SHAPE = (2, 6)


class UnreadableLayer(Exception):
    """A layer's neurons cannot be read; the message ends a sentence."""


@dataclass
class ModuleCall:
    """One call of a module and the calls inside it."""

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    inside: list["ModuleCall"] = field(default_factory=list)

    def walk(self) -> Iterator["ModuleCall"]:
        """Every call inside this one, in the order of their start."""
        for call in self.inside:
            yield call
            yield from call.walk()

    @property
    def input(self) -> Tensor | None:
        """The first floating-point tensor among the arguments."""
        values = (*self.arguments, *self.keywords.values())
        return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)

    def run(self, changed_input: Tensor | None = None) -> Tensor:
        """Run the module again, optionally with another input, and return its first output in float32."""
        arguments, keywords = self.arguments, self.keywords
        if changed_input is not None:
            arguments = tuple(changed_input if value is self.input else value for value in arguments)
            keywords = {name: changed_input if value is self.input else value for name, value in keywords.items()}
        output = self.module(*arguments, **keywords)
        return (output if isinstance(output, Tensor) else output[0]).float()


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers: the largest module list that runs on text.

    Raises:
        SafetyNeuronsError: there is none, or the model does not accept plain text.
    """
    ran: set[nn.Module] = set()
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(lambda module, _args: ran.add(module)).remove)
        with torch.no_grad():
            model(**dummy_input(model), use_cache=False)
    lists = [
        module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) and ran & {*module}
    ]
    if not lists:
        raise SafetyNeuronsError(
            f"The decoder layers of {type(model).__name__} were not found: it has no list of layers. "
            "Choose a decoder-only model of transformers."
        )
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def trace_layers(model: PreTrainedModel) -> dict[nn.Module, list[ModuleCall]]:
    """The calls of each decoder layer on a dummy input, in the order of the layers."""
    layers = decoder_layers(model)
    calls: dict[nn.Module, list[ModuleCall]] = {layer: [] for layer in layers}
    with contextlib.ExitStack() as stack:
        for layer in layers:
            _watch(stack, layer, calls[layer])
        model(**dummy_input(model), use_cache=False)
    return calls


def only_call(calls: list[ModuleCall]) -> ModuleCall | None:
    """A layer's call; None if it takes no part in text generation, such as cross-attention to images.

    Raises:
        UnreadableLayer: it runs more than once, or its input is not [batch, tokens, hidden].
    """
    if len(calls) > 1:
        raise UnreadableLayer(f"it runs {len(calls)} times in one forward pass, so a token has no single activation")
    tensor = calls[0].input if calls else None
    # Layers with several residual streams may put these first.
    if calls and (tensor is None or tensor.dim() < 3 or DUMMY_SHAPE not in (tensor.shape[:2], tensor.shape[-3:-1])):
        raise UnreadableLayer("its input is not [batch, tokens, hidden], so the positions of the tokens are unknown")
    return calls[0] if calls else None


def dummy_input(model: PreTrainedModel) -> dict[str, Tensor]:
    """Token ids [2, 6], all different if the vocabulary allows, and their attention mask.

    Raises:
        SafetyNeuronsError: the model does not accept plain text.
    """
    embeddings = model.get_input_embeddings()
    weight = getattr(embeddings, "weight", None)
    if weight is None:
        raise SafetyNeuronsError(
            f"{type(model).__name__} has no embedding of plain text: it is not a language model. Choose a language "
            "model."
        )
    numbers = torch.arange(2, 2 + DUMMY_SHAPE[0] * DUMMY_SHAPE[1], device=device_of(embeddings))
    tokens = (numbers * 7 % min(weight.shape[0], 1000)).view(DUMMY_SHAPE)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _watch(stack: contextlib.ExitStack, layer: nn.Module, finished: list[ModuleCall]) -> None:
    running: list[ModuleCall] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not running and module is not layer:
            return  # Activation functions may be shared with other layers.
        call = ModuleCall(module, args, kwargs)
        (running[-1].inside if running else finished).append(call)
        running.append(call)

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        if running:
            running.pop()

    for module in layer.modules():
        stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(leave).remove)


def norms(layer: ModuleCall) -> set[nn.Module]:
    """The norms of a layer: so named, and with the same output for scaled inputs."""
    found = set()
    for call in layer.walk():
        tensor = call.input
        if "norm" in type(call.module).__name__.lower() and tensor is not None:
            # Long inputs, for which the epsilon of a norm is negligible.
            one, other = call.run(tensor * 100), call.run(tensor * 200)
            if one.shape == tensor.shape and torch.allclose(one, other, rtol=1e-2, atol=1e-3):
                found.add(call.module)
    return found


def reads_no_residual_stream(layer: ModuleCall) -> set[nn.Module]:
    """The matrices whose input does not depend on the layer's input: they read token embeddings."""
    seen: dict[nn.Module, Tensor] = {}
    same: set[nn.Module] = set()

    def compare(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module in seen and seen[module].shape == args[0].shape and torch.equal(seen[module], args[0]):
            same.add(module)
        seen[module] = args[0].detach().clone()

    assert layer.input is not None
    with contextlib.ExitStack() as stack:
        for module in layer.module.modules():
            if is_matrix(module):
                stack.callback(module.register_forward_pre_hook(compare).remove)
        layer.run()
        layer.run(layer.input.flip(-1) + 1)
    return same


def mixers(layer: ModuleCall, hidden: int) -> set[nn.Module]:
    """The modules that mix tokens: attention, state spaces, convolutions over time."""
    found: set[nn.Module] = set()
    for call in layer.inside:
        if not any(parameter.dim() > 1 for parameter in call.module.parameters()) or not mixes_positions(call):
            continue
        if any(expert_layout(inner.module) or _looks_like_an_mlp(inner, hidden) for inner in call.walk()):
            found |= mixers(call, hidden)
        else:
            found.add(call.module)
    return found


def mixes_positions(call: ModuleCall) -> bool:
    """Whether changing the input of one token changes the output for another."""
    tensor = call.input
    rows = DUMMY_SHAPE[0] * DUMMY_SHAPE[1]
    if tensor is None or tensor.dim() < 2 or tensor[..., 0].numel() % rows:
        return False
    changed = tensor.clone()
    target = changed[0, 1] if tensor.shape[:2] == DUMMY_SHAPE else changed[1]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(target.shape, generator=generator).to(target.device, target.dtype)
    target += noise * (tensor.float().std() + 1e-3).to(target.dtype)
    before, after = call.run(), call.run(changed)
    if before.numel() % rows:
        return False
    moved = (after - before).reshape(rows, -1).norm(dim=1)
    # Kernels may round other rows differently if one changes.
    rounding = 4 * torch.finfo(tensor.dtype).eps * before.reshape(rows, -1).norm(dim=1)
    return bool(((moved > 1e-3 * moved[1] + rounding) & (torch.arange(rows, device=moved.device) != 1)).any())


def _looks_like_an_mlp(call: ModuleCall, hidden: int) -> bool:
    """Whether a module maps each position by itself, [hidden] to [hidden], through two matrices and not linearly."""
    tensor = call.input
    if tensor is None or tensor.shape[-1] != hidden or sum(is_matrix(inner.module) for inner in call.walk()) < 2:
        return False
    output = call.run()
    if output.shape != tensor.shape or mixes_positions(call):
        return False
    linear = call.run(tensor * 2) - call.run(tensor * 0)
    return not torch.allclose(linear, 2 * (output - call.run(tensor * 0)), rtol=1e-2, atol=1e-4)
