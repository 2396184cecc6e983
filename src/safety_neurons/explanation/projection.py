"""`explain`: the words that a neuron set and its strongest single neurons promote and suppress, layer by layer.

A set is read as its activation-weighted write, the sum of w_i * r_i over the set, through the model's final norm and
unembedding (the paper, section 3.2; the logit lens of the field); see `writes` for the weights. `vocabulary` tests how
much of that is more than chance and more than single neurons say.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safety_neurons.core.progress import Advance, ignore
from safety_neurons.explanation.config import ExplainConfig
from safety_neurons.explanation.explanation import Explanation, NeuronWords, SideWords, WriteShare
from safety_neurons.explanation.readout import Readout, ResidualMeans, Words
from safety_neurons.explanation.vocabulary import compare_layers
from safety_neurons.explanation.writes import (
    SIDES,
    WEIGHTINGS,
    LayerWrites,
    NeuronAddress,
    Side,
    Weighting,
    layer_writes,
)
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet


def explain(
    model: ChatModel,
    neurons: NeuronSet,
    /,
    config: ExplainConfig = ExplainConfig(),
    *,
    residuals: ResidualMeans | None = None,
    seed: int = 0,
    advance: Advance = ignore,
    **options: Any,
) -> Explanation:
    """Read in words what the rejection and the conformity neurons write at the last prompt position.

    Args:
        config: how to explain; `lens_prompts` concerns runs alone.
        residuals: the residual stream's means (`mean_residuals`), for the logit lens beside the test.
        advance: told of every layer when it is done.
        options: fields of `ExplainConfig` that replace those of `config`: `neurons=5` reads five single neurons.

    Raises:
        SafetyNeuronsError: the neurons have no directions or belong to another model, the model has no unembedding,
            or an option is not allowed.
    """
    config = config.override(options)
    readout = Readout.of(model)
    sides: list[_Side] = []
    shares: list[WriteShare] = []

    def layers() -> Iterator[LayerWrites]:
        for layer in layer_writes(model, neurons):
            sides.extend(
                _Side.of(layer, side, config.weighting, config.neurons) for side in SIDES if len(layer.found(side))
            )
            shares.extend(_share(layer, each) for each in WEIGHTINGS)
            yield layer

    vocabulary = None
    if config.random_sets:
        vocabulary = compare_layers(readout, layers(), config.random_sets, residuals, seed, advance)
    else:
        for _ in layers():
            advance(1)
    words = _words(readout, sides, config.words)
    return Explanation(words, config.weighting, tuple(shares), vocabulary)


@dataclass(frozen=True)
class _Side:
    """One side of a layer before it is read in words: `writes` [1 + single neurons, hidden], the set's write first.

    `single` holds the address, weight and strength of each single neuron, strongest first.
    """

    layer: int
    side: Side
    writes: Tensor
    single: tuple[tuple[NeuronAddress, float, float], ...]

    @classmethod
    def of(cls, layer: LayerWrites, side: Side, weighting: Weighting, strongest: int) -> "_Side":
        found = layer.found(side)
        weights, vectors = layer.weights(side, weighting)[found], layer.vectors[found]
        strengths = weights.abs() * vectors.norm(dim=1)
        best = strengths.topk(min(strongest, len(found))).indices
        single = zip(found[best].tolist(), weights[best].tolist(), strengths[best].tolist(), strict=True)
        return cls(
            layer.layer,
            side,
            torch.cat([(weights @ vectors)[None], weights[best].sign()[:, None] * vectors[best]]),
            tuple((layer.address(index), weight, strength) for index, weight, strength in single),
        )

    def words(self, read: Sequence[tuple[Words, Words]]) -> SideWords:
        """With what `Readout.words` says of `writes`."""
        (promoted, suppressed), *alone = read
        neurons = tuple(
            NeuronWords(self.layer, self.side, *address, weight, strength, up.words, down.words)
            for (address, weight, strength), (up, down) in zip(self.single, alone, strict=True)
        )
        return SideWords(self.layer, self.side, *promoted, *suppressed, neurons)


def _words(readout: Readout, sides: Sequence[_Side], top: int) -> tuple[SideWords, ...]:
    """Read all layers at once, since every projection reads the whole unembedding."""
    if not sides:
        return ()
    read = iter(readout.words(torch.cat([each.writes.to(readout.model.device) for each in sides]), top))
    return tuple(each.words(list(itertools.islice(read, len(each.writes)))) for each in sides)


def _share(layer: LayerWrites, weighting: Weighting) -> WriteShare:
    both = torch.cat([layer.rejection, layer.conformity])
    # Neurons of both sides get the same weights; "rejection" sets the sign of the difference.
    part, whole = (layer.write(indices, "rejection", weighting).double() for indices in (both, None))
    small, large = float(part.norm()), float(whole.norm())
    share = len(both) / len(layer.vectors)
    if not small or not large:
        return WriteShare(layer.layer, weighting, share, 0.0, 0.0, 0.0)
    product = float(part @ whole)
    return WriteShare(layer.layer, weighting, share, small / large, product / large**2, product / (small * large))
