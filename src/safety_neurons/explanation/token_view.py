"""Which safety neurons fire on which token of a prompt, and what each of them writes there."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.explanation.readout import Readout, readable
from safety_neurons.explanation.writes import Place, Side
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.neurons.hook_points import Activations, activation_hooks
from safety_neurons.neurons.neuron_set import NeuronSet


@dataclass(frozen=True)
class Firing:
    """One safety neuron on one token: neuron `neuron` of the site with this number.

    `strength` is |activation| * norm of the write vector (in a mixture of experts times the routing weight): the
    length of what it writes. `mean` is its mean activation at the last position of its side's prompts (harmful for
    rejection, benign for conformity), and `relative` the activation as a multiple of that: None where there is no
    mean, or it is 0. `words` are those that this write promotes: those of the write vector turned round where the
    activation is negative.
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
    """One token and its strongest safety neurons, the strongest first; position -1 is the prompt's last token.

    `lean` places all the set's activations on the line from their means on benign prompts (0) to those on harmful
    ones (1), both at the prompt's last position: the sum of |r_i|^2 (a_i - mean_B) (mean_H - mean_B) over the sum of
    |r_i|^2 (mean_H - mean_B)^2. It is made for the prompt's last tokens; None where there are no means.
    """

    position: int
    token: str
    lean: float | None
    firings: tuple[Firing, ...]


@dataclass(frozen=True)
class TokenTrace:
    """Every token of a rendered prompt. Prints as a table."""

    prompt: str
    tokens: tuple[TokenFirings, ...]

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        table = Table(title="Which safety neurons fire on which token", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("token", overflow="fold")
        for column in ("lean", "layer", "neuron", "activation", "of mean"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("side", no_wrap=True)
        table.add_column("writes", overflow="fold")
        for one in self.tokens:
            if not one.firings:
                table.add_row(*_named(one))
            for number, firing in enumerate(one.firings):
                table.add_row(
                    *(_named(one) if number == 0 else ("", "")),
                    str(firing.layer),
                    str(firing.neuron),
                    f"{firing.activation:.2f}",
                    "-" if firing.relative is None else f"{firing.relative:.1f}x",
                    firing.side,
                    escape(" ".join(readable(word) for word in firing.words)),
                )
        yield table

    def __str__(self) -> str:
        console = Console(width=110)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def _named(one: TokenFirings) -> tuple[str, str]:
    return escape(readable(one.token)), "-" if one.lean is None else f"{one.lean:.2f}"


def trace_tokens(model: ChatModel, neurons: NeuronSet, prompt: str, *, top: int = 3, words: int = 5) -> TokenTrace:
    """Run one request through the model and say which safety neurons write most on each token.

    Args:
        prompt: what a user would type; it is rendered with the model's chat template.
        top: how many neurons per token. One that writes nothing there is left out.
        words: how many words per neuron.

    Raises:
        SafetyNeuronsError: there are no neurons, or they fit another model, or it has no unembedding.
    """
    neurons.check_fits(model)
    if not len(neurons):
        raise SafetyNeuronsError("The set holds no neurons, so none can fire. Find some with a larger percent.")
    readout = Readout.of(model)
    text = model.render(prompt)
    inputs = model.encode([text])
    ids: list[int] = inputs["input_ids"][0].tolist()
    points = [number for number, indices in enumerate(neurons.both) if len(indices)]
    gathered = [
        _Gather(model.hook_points[number].write_vectors(neurons.both[number]), neurons.both[number], len(ids))
        for number in points
    ]
    hooks = [(model.hook_points[number], gather) for number, gather in zip(points, gathered, strict=True)]
    with torch.inference_mode(), activation_hooks(hooks):
        forward(model.model, inputs)
    places = [Place(number, neuron) for number in points for neuron in neurons.both[number].tolist()]
    vectors = torch.cat([gather.vectors.cpu() for gather in gathered])
    activations = torch.cat([gather.activations for gather in gathered], 1)
    strengths = torch.cat([gather.strengths for gather in gathered], 1)
    best = strengths.topk(min(top, len(places)), 1).indices.tolist()
    chosen = [[index for index in row if strengths[token, index] > 0] for token, row in enumerate(best)]
    lean = _lean(neurons, activations, vectors)
    said = _words(readout, vectors, activations, chosen, words)
    return TokenTrace(
        text,
        tuple(
            TokenFirings(
                token - len(ids),
                model.tokenizer.decode([ids[token]]),
                None if lean is None else float(lean[token]),
                tuple(
                    _firing(
                        neurons,
                        places[index],
                        float(activations[token, index]),
                        float(strengths[token, index]),
                        said[index, bool(activations[token, index] > 0)],
                    )
                    for index in row
                ),
            )
            for token, row in enumerate(chosen)
        ),
    )


@dataclass
class _Gather:
    """The hook of one site: keeps the found neurons' activations and strengths, float32 [tokens, neurons] each."""

    vectors: Tensor
    neurons: Tensor
    tokens: int
    activations: Tensor = field(init=False)
    strengths: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.activations = torch.zeros(self.tokens, len(self.neurons))
        self.strengths = torch.zeros(self.tokens, len(self.neurons))

    def __call__(self, shown: Activations) -> None:
        end = shown.first + shown.values.shape[1]
        mine = ((self.neurons >= shown.first) & (self.neurons < end)).nonzero().flatten()
        rows = torch.arange(self.tokens) if shown.tokens is None else shown.tokens.cpu()
        values = shown.values[:, (self.neurons[mine] - shown.first).to(shown.values.device)].float().cpu()
        routing = torch.ones(len(rows)) if shown.routing is None else shown.routing.float().cpu()
        self.activations[rows[:, None], mine] = values
        self.strengths[rows[:, None], mine] = (values * routing[:, None]).abs() * self.vectors.norm(dim=1).cpu()[mine]


def _lean(neurons: NeuronSet, activations: Tensor, vectors: Tensor) -> Tensor | None:
    """`TokenFirings.lean` [tokens] of the set's activations [tokens, neurons]."""
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
    """The words of every neuron that is shown, for the sign of its activation; each is read once."""
    needed = sorted({(index, bool(activations[token, index] > 0)) for token, row in enumerate(chosen) for index in row})
    if not needed:
        return {}
    read = readout.words(torch.stack([vectors[index] if up else -vectors[index] for index, up in needed]), words)
    return {key: promoted.words for key, (promoted, _) in zip(needed, read, strict=True)}


def _firing(neurons: NeuronSet, place: Place, activation: float, strength: float, words: tuple[str, ...]) -> Firing:
    side: Side = "rejection" if bool((neurons.rejection[place.hook_point] == place.neuron).any()) else "conformity"
    mean = None
    if neurons.directions is not None:
        means = neurons.directions.harmful if side == "rejection" else neurons.directions.benign
        mean = float(means[place.hook_point][-1, place.neuron])
    relative = activation / mean if mean else None
    return Firing(neurons.layers[place.hook_point], *place, side, activation, mean, relative, strength, words)
