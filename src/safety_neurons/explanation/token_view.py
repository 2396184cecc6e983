"""The activations of safety neurons on each token of a prompt, and what they write there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.tables import Table, numbers, words
from safety_neurons.core.terminal import TerminalTable
from safety_neurons.explanation.explanation import printed
from safety_neurons.explanation.readout import Readout, readable
from safety_neurons.explanation.writes import NeuronAddress, Side
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.neurons.hook_points import Activations, activation_hooks
from safety_neurons.neurons.neuron_set import NeuronSet


@dataclass(frozen=True)
class Firing:
    """One safety neuron on one token: its hook point (by number) and index there.

    `strength` is the length of its write: |activation| * norm of the write vector (times the routing weight in a
    mixture of experts). `mean` is its mean activation at the last position of its side's prompts (harmful for
    rejection, benign for conformity) and `relative` the activation as a multiple of it; None without a mean or if it is
    0. `words` are those that the write promotes, of the negated write vector if the activation is negative.
    """

    layer: int
    hook_point: int
    neuron: int
    side: Side
    activation: float
    mean: float | None
    relative: float | None
    strength: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class TokenFirings:
    """One token and its strongest safety neurons, strongest first; position -1 is the last prompt token.

    `lean` projects the activations of the whole set on the line from their means on benign prompts (0) to those on
    harmful prompts (1), both at the last position: the sum of |r_i|^2 (a_i - mean_B) (mean_H - mean_B) over the sum of
    |r_i|^2 (mean_H - mean_B)^2. It is meant for the last prompt tokens; None without means.
    """

    position: int
    token: str
    lean: float | None
    firings: tuple[Firing, ...]


@dataclass(frozen=True)
class TokenTrace:
    """All tokens of a rendered prompt. Prints as a table."""

    prompt: str
    tokens: tuple[TokenFirings, ...]

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        rows: list[list[object]] = []
        for token in self.tokens:
            named = readable(token.token), "-" if token.lean is None else f"{token.lean:.2f}"
            if not token.firings:
                rows.append([*named, "", "", "", "", "", ""])
            for number, firing in enumerate(token.firings):
                rows.append(
                    [
                        *(named if number == 0 else ("", "")),
                        firing.layer,
                        firing.neuron,
                        f"{firing.activation:.2f}",
                        "-" if firing.relative is None else f"{firing.relative:.1f}x",
                        firing.side,
                        " ".join(readable(word) for word in firing.words),
                    ]
                )
        columns = (
            *words("token"),
            *numbers("lean", "layer", "neuron", "activation", "of mean"),
            *words("side", "writes"),
        )
        yield TerminalTable(Table.of("Which safety neurons fire on which token", columns, rows))

    def __str__(self) -> str:
        return printed(self)


def trace_tokens(model: ChatModel, neurons: NeuronSet, prompt: str, *, top: int = 3, words: int = 5) -> TokenTrace:
    """Run one request through the model and find the safety neurons that write most on each token.

    Args:
        prompt: a request as a user would type it.
        top: maximum number of neurons per token; neurons that write nothing there are omitted.
        words: number of words per neuron.

    Raises:
        SafetyNeuronsError: the set is empty or fits another model, or there is no unembedding.
    """
    neurons.check_fits(model)
    if not len(neurons):
        raise SafetyNeuronsError("The neuron set is empty: find neurons with a larger percent.")
    readout = Readout.of(model)
    text = model.render(prompt)
    inputs = model.encode([text])
    ids: list[int] = inputs["input_ids"][0].tolist()
    points = [number for number, indices in enumerate(neurons.both) if len(indices)]
    recorders = [
        _Recorder(model.hook_points[number].write_vectors(neurons.both[number]), neurons.both[number], len(ids))
        for number in points
    ]
    hooks = [(model.hook_points[number], recorder) for number, recorder in zip(points, recorders, strict=True)]
    with torch.inference_mode(), activation_hooks(hooks):
        forward(model.model, inputs)
    addresses = [NeuronAddress(number, neuron) for number in points for neuron in neurons.both[number].tolist()]
    vectors = torch.cat([recorder.vectors.cpu() for recorder in recorders])
    activations = torch.cat([recorder.activations for recorder in recorders], 1)
    strengths = torch.cat([recorder.strengths for recorder in recorders], 1)
    best = strengths.topk(min(top, len(addresses)), 1).indices.tolist()
    chosen = [[index for index in row if strengths[token, index] > 0] for token, row in enumerate(best)]
    lean = _lean(neurons, activations, vectors)
    promoted = _words(readout, vectors, activations, chosen, words)

    def firing(token: int, index: int) -> Firing:
        address, activation = addresses[index], float(activations[token, index])
        rejects = bool((neurons.rejection[address.hook_point] == address.neuron).any())
        mean = None
        if neurons.directions is not None:
            means = neurons.directions.harmful if rejects else neurons.directions.benign
            mean = float(means[address.hook_point][-1, address.neuron])
        return Firing(
            neurons.layers[address.hook_point],
            *address,
            "rejection" if rejects else "conformity",
            activation,
            mean,
            activation / mean if mean else None,
            float(strengths[token, index]),
            promoted[index, activation > 0],
        )

    def firings(token: int) -> TokenFirings:
        found = tuple(firing(token, index) for index in chosen[token])
        shown = model.tokenizer.decode([ids[token]])
        return TokenFirings(token - len(ids), shown, None if lean is None else float(lean[token]), found)

    return TokenTrace(text, tuple(map(firings, range(len(ids)))))


class _Recorder:
    """Hook that records the activations and strengths of the safety neurons: float32 [tokens, neurons] each."""

    def __init__(self, vectors: Tensor, neurons: Tensor, tokens: int) -> None:
        self.vectors, self.neurons, self.tokens = vectors, neurons, tokens
        self.activations, self.strengths = torch.zeros(2, tokens, len(neurons))

    def __call__(self, seen: Activations) -> None:
        end = seen.first + seen.values.shape[1]
        own = ((self.neurons >= seen.first) & (self.neurons < end)).nonzero().flatten()
        rows = torch.arange(self.tokens) if seen.tokens is None else seen.tokens.cpu()
        values = seen.values[:, (self.neurons[own] - seen.first).to(seen.values.device)].float().cpu()
        routing = torch.ones(len(rows)) if seen.routing is None else seen.routing.float().cpu()
        self.activations[rows[:, None], own] = values
        self.strengths[rows[:, None], own] = (values * routing[:, None]).abs() * self.vectors.norm(dim=1).cpu()[own]


def _lean(neurons: NeuronSet, activations: Tensor, vectors: Tensor) -> Tensor | None:
    """`TokenFirings.lean` [tokens] from activations [tokens, neurons]."""
    if neurons.directions is None:
        return None
    harmful, benign = (
        torch.cat([mean[-1, indices] for mean, indices in zip(means, neurons.both, strict=True)])
        for means in (neurons.directions.harmful, neurons.directions.benign)
    )
    weights = (harmful - benign) * vectors.square().sum(1)
    whole = float(weights @ (harmful - benign))
    return (activations - benign) @ weights / whole if whole else None


def _words(
    readout: Readout, vectors: Tensor, activations: Tensor, chosen: Sequence[Sequence[int]], words: int
) -> dict[tuple[int, bool], tuple[str, ...]]:
    """The words of every chosen neuron by the sign of its activation; each is read once."""
    needed = sorted({(index, bool(activations[token, index] > 0)) for token, row in enumerate(chosen) for index in row})
    if not needed:
        return {}
    read = readout.words(torch.stack([vectors[index] if up else -vectors[index] for index, up in needed]), words)
    return {key: promoted.words for key, (promoted, _) in zip(needed, read, strict=True)}
