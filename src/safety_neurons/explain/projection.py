"""Words that a neuron set promotes: its activation-weighted write, projected to the vocabulary.

p = sum over the set of w_i * r_i per layer, then the top tokens of the unembedding after the model's final norm (the
paper, section 3.2). The weights w_i are the mean activations on the side's own prompts ("mean", the paper's), or
what they add over the other side's prompts ("difference").
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find.neuron_set import NeuronSet
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.trace import decoder_layers

Weighting = Literal["mean", "difference"]
Side = Literal["rejection", "conformity"]


@dataclass(frozen=True)
class LayerWords:
    """The top tokens of one layer and side, most promoted first, with their logits."""

    layer: int
    side: Side
    words: tuple[str, ...]
    logits: tuple[float, ...]


@dataclass(frozen=True)
class Explanation:
    """Words per layer; layers without neurons are left out. Prints as a table."""

    layers: tuple[LayerWords, ...]
    weighting: Weighting

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        table = Table(title="What the safety neurons say", title_justify="left")
        table.add_column("layer", justify="right")
        table.add_column("rejection neurons promote")
        table.add_column("conformity neurons promote")
        sides: dict[int, dict[str, str]] = {}
        for layer in self.layers:
            sides.setdefault(layer.layer, {})[layer.side] = " ".join(readable(word) for word in layer.words)
        for number, words in sides.items():
            table.add_row(str(number), escape(words.get("rejection", "")), escape(words.get("conformity", "")))
        yield table

    def __str__(self) -> str:
        console = Console(width=110)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def readable(token: str) -> str:
    """A token as it can be shown: control characters, which could steer a terminal, become escapes."""
    stripped = token.strip() or token
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in stripped)


def explain(model: ChatModel, neurons: NeuronSet, *, top: int = 10, weighting: Weighting = "difference") -> Explanation:
    """Project what the rejection and the conformity neurons write at the prompt's last position.

    Raises:
        SafetyNeuronsError: the neurons came without directions or fit another model, or there is no unembedding.
    """
    directions = neurons.directions
    if directions is None:
        raise SafetyNeuronsError(
            "These neurons came without directions; load them with directions=, or run find again."
        )
    neurons.check_fits(model)
    unembedding = model.model.get_output_embeddings()
    if unembedding is None:
        raise SafetyNeuronsError(f"{model.name} has no unembedding, so its neurons cannot be read in words.")
    norm = final_norm(model)
    found = []
    sides: tuple[Side, ...] = ("rejection", "conformity")
    for layer in dict.fromkeys(neurons.layers):
        for side in sides:
            write = set_write(model, neurons, layer, side, weighting)
            if write is None:
                continue
            with torch.no_grad():
                logits = unembedding(norm(write.to(model.model.dtype)[None]))[0].float()
            best = logits.topk(top)
            words = tuple(model.tokenizer.decode([token]) for token in best.indices.tolist())
            found.append(LayerWords(layer, side, words, tuple(best.values.tolist())))
    return Explanation(tuple(found), weighting)


def set_write(
    model: ChatModel, neurons: NeuronSet, layer: int, side: Side, weighting: Weighting = "difference"
) -> Tensor | None:
    """What one side's neurons of a layer write together at the prompt's last position: float32 [hidden].

    None where the layer has no neurons of this side.
    """
    assert neurons.directions is not None
    own, other = neurons.directions.harmful, neurons.directions.benign
    if side == "conformity":
        own, other = other, own
    chosen = neurons.rejection if side == "rejection" else neurons.conformity
    total = None
    for number, site in enumerate(model.sites):
        indices = chosen[number]
        if site.layer == layer and len(indices):
            weights = own[number][-1, indices] - (other[number][-1, indices] if weighting == "difference" else 0)
            vectors = site.write_vectors(indices)
            write = weights.to(vectors.device) @ vectors
            total = write if total is None else total + write
    return total


def final_norm(model: ChatModel) -> nn.Module:
    """The module between the last layer and the unembedding, found by what it returns.

    Raises:
        SafetyNeuronsError: the unembedding reads something that no single module returns.
    """
    inside_layers = {module for layer in decoder_layers(model.model) for module in layer.modules()}
    returned: list[tuple[nn.Module, Tensor]] = []
    read: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        for module in model.model.modules():
            if module not in inside_layers and not list(module.children()):
                stack.enter_context(_watch(module, returned))
        unembedding = model.model.get_output_embeddings()
        handle = unembedding.register_forward_pre_hook(lambda _module, args: read.append(args[0]))
        stack.callback(handle.remove)
        with torch.no_grad():
            forward(model.model, model.encode([model.render("Hello")]), last_logits=0)
    for module, output in reversed(returned):
        if module is not unembedding and output.shape == read[0].shape and torch.equal(output, read[0]):
            return module
    raise SafetyNeuronsError(f"The final norm of {model.name} was not found, so its neurons cannot be read in words.")


@contextlib.contextmanager
def _watch(module: nn.Module, returned: list[tuple[nn.Module, Tensor]]) -> Iterator[None]:
    def note(module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor):
            returned.append((module, output))

    handle = module.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()
