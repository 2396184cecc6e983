"""What one forward pass on a dummy input shows of each decoder layer: which modules ran, with what, inside which."""

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

# Two different sequences: a layer that orders its rows in another way than [batch, tokens] shows itself.
DUMMY_SHAPE = (2, 6)


class UnreadableLayer(Exception):
    """Why a layer's neurons cannot be read, as the end of a sentence."""


@dataclass
class ModuleCall:
    """One run of a module, and the runs inside it."""

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    inside: list["ModuleCall"] = field(default_factory=list)

    def walk(self) -> Iterator["ModuleCall"]:
        """Every run inside this one, in the order in which they began."""
        for call in self.inside:
            yield call
            yield from call.walk()

    @property
    def input(self) -> Tensor | None:
        """The first tensor of floating point numbers that was given."""
        given = (*self.arguments, *self.keywords.values())
        return next((value for value in given if isinstance(value, Tensor) and value.is_floating_point()), None)

    def run(self, changed_input: Tensor | None = None) -> Tensor:
        """Run the module again, perhaps with another input, and return its first output in float32."""
        arguments, keywords = self.arguments, self.keywords
        if changed_input is not None:
            arguments = tuple(changed_input if value is self.input else value for value in arguments)
            keywords = {name: changed_input if value is self.input else value for name, value in keywords.items()}
        output = self.module(*arguments, **keywords)
        return (output if isinstance(output, Tensor) else output[0]).float()


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: of the module lists that run on text the one that holds the most weights.

    Raises:
        SafetyNeuronsError: there is none, or the model takes no plain text.
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
            f"The decoder layers of {type(model).__name__} were not found: it has no list of layers, so its neurons "
            "cannot be read. Choose a decoder-only model in transformers' own layout."
        )
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def trace_layers(model: PreTrainedModel) -> dict[nn.Module, list[ModuleCall]]:
    """Run a dummy input through the model and keep each decoder layer's runs, in the order of the layers."""
    layers = decoder_layers(model)
    calls: dict[nn.Module, list[ModuleCall]] = {layer: [] for layer in layers}
    with contextlib.ExitStack() as stack:
        for layer in layers:
            _watch(stack, layer, calls[layer])
        model(**dummy_input(model), use_cache=False)
    return calls


def only_run(calls: list[ModuleCall]) -> ModuleCall | None:
    """A layer's run; None where it takes no part in text generation, such as cross-attention that reads images.

    Raises:
        UnreadableLayer: it runs more than once, or does not keep its tokens as [batch, tokens, hidden].
    """
    if len(calls) > 1:
        raise UnreadableLayer(f"it runs {len(calls)} times in one forward pass, so a token has no single activation")
    given = calls[0].input if calls else None
    # Layers that keep several residual streams may put them first.
    if calls and (given is None or given.dim() < 3 or DUMMY_SHAPE not in (given.shape[:2], given.shape[-3:-1])):
        raise UnreadableLayer("it does not get its tokens as [batch, tokens, hidden], so their positions are not known")
    return calls[0] if calls else None


def dummy_input(model: PreTrainedModel) -> dict[str, Tensor]:
    """Token ids [2, 6], all different where the vocabulary allows, and their attention mask.

    Raises:
        SafetyNeuronsError: the model takes no plain text.
    """
    embeddings = model.get_input_embeddings()
    weight = getattr(embeddings, "weight", None)
    if weight is None:
        raise SafetyNeuronsError(f"{type(model).__name__} has no embedding of plain text: it is no language model.")
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
    """The norms of a layer: called so, and returning the same for an input of any length."""
    found = set()
    for call in layer.walk():
        given = call.input
        if "norm" in type(call.module).__name__.lower() and given is not None:
            # Long inputs, next to which a norm's epsilon is nothing.
            one, other = call.run(given * 100), call.run(given * 200)
            if one.shape == given.shape and torch.allclose(one, other, rtol=1e-2, atol=1e-3):
                found.add(call.module)
    return found


def reads_no_residual_stream(layer: ModuleCall) -> set[nn.Module]:
    """The matrices that get the same whatever the layer's input is: they read embeddings of the tokens."""
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
    """The modules of a layer in which tokens see each other: attention, state spaces, convolutions over time."""
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
    """Whether changing one token's input changes what the module returns for another."""
    given = call.input
    rows = DUMMY_SHAPE[0] * DUMMY_SHAPE[1]
    if given is None or given.dim() < 2 or given[..., 0].numel() % rows:
        return False
    changed = given.clone()
    target = changed[0, 1] if given.shape[:2] == DUMMY_SHAPE else changed[1]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(target.shape, generator=generator).to(target.device, target.dtype)
    target += noise * (given.float().std() + 1e-3).to(target.dtype)
    before, after = call.run(), call.run(changed)
    if before.numel() % rows:
        return False
    moved = (after - before).reshape(rows, -1).norm(dim=1)
    # Kernels may round other rows differently when one changes.
    rounding = 4 * torch.finfo(given.dtype).eps * before.reshape(rows, -1).norm(dim=1)
    return bool(((moved > 1e-3 * moved[1] + rounding) & (torch.arange(rows, device=moved.device) != 1)).any())


def _looks_like_an_mlp(call: ModuleCall, hidden: int) -> bool:
    """Position by position, from the residual stream's size to the same, through two matrices and not linear."""
    given = call.input
    if given is None or given.shape[-1] != hidden or sum(is_matrix(inner.module) for inner in call.walk()) < 2:
        return False
    output = call.run()
    if output.shape != given.shape or mixes_positions(call):
        return False
    linear = call.run(given * 2) - call.run(given * 0)
    return not torch.allclose(linear, 2 * (output - call.run(given * 0)), rtol=1e-2, atol=1e-4)
