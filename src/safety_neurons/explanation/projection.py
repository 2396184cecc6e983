"""`explain`: the words that a neuron set and its strongest single neurons promote and suppress, layer by layer.

A set is read as its activation-weighted write, the sum of w_i * r_i over the set, through the model's final norm and
unembedding (the paper, section 3.2; the logit lens of the field); see `writes` for the weights. `vocabulary` tests how
much of that is more than chance and more than single neurons say.
"""

from typing import Any

import torch

from safety_neurons.core.progress import Advance, ignore
from safety_neurons.explanation.config import ExplainConfig
from safety_neurons.explanation.explanation import Explanation, NeuronWords, SideWords, WriteShare
from safety_neurons.explanation.readout import Readout, ResidualMeans
from safety_neurons.explanation.vocabulary import vocabulary_test
from safety_neurons.explanation.writes import SIDES, WEIGHTINGS, LayerWrites, Side, Weighting, layer_writes
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
    words: list[SideWords] = []
    shares: list[WriteShare] = []
    for layer in layer_writes(model, neurons):
        words += [
            _side_words(readout, layer, side, config.weighting, config.words, config.neurons)
            for side in SIDES
            if len(layer.found(side))
        ]
        shares += [_share(layer, each) for each in WEIGHTINGS]
        if not config.random_sets:
            advance(1)
    vocabulary = None
    if config.random_sets:
        vocabulary = vocabulary_test(
            model,
            neurons,
            random_sets=config.random_sets,
            residuals=residuals,
            seed=seed,
            advance=advance,
            readout=readout,
        )
    return Explanation(tuple(words), config.weighting, tuple(shares), vocabulary)


def _side_words(
    readout: Readout, layer: LayerWrites, side: Side, weighting: Weighting, top: int, strongest: int
) -> SideWords:
    found = layer.found(side)
    weights = layer.weights(side, weighting)[found]
    strengths = weights.abs() * layer.vectors[found].norm(dim=1)
    best = strengths.topk(min(strongest, len(found))).indices
    single = weights[best].sign()[:, None] * layer.vectors[found[best]]
    (promoted, suppressed), *read = readout.words(torch.cat([layer.write(found, side, weighting)[None], single]), top)
    neurons = tuple(
        NeuronWords(
            layer.layer,
            side,
            *layer.address(int(found[index])),
            float(weights[index]),
            float(strengths[index]),
            up.words,
            down.words,
        )
        for index, (up, down) in zip(best.tolist(), read, strict=True)
    )
    return SideWords(layer.layer, side, *promoted, *suppressed, neurons)


def _share(layer: LayerWrites, weighting: Weighting) -> WriteShare:
    everyone = torch.arange(len(layer.vectors), device=layer.vectors.device)
    both = torch.cat([layer.rejection, layer.conformity])
    # Neurons of both sides get the same weights; "rejection" sets the sign of the difference.
    part, whole = (layer.write(indices, "rejection", weighting).double() for indices in (both, everyone))
    small, large = float(part.norm()), float(whole.norm())
    share = len(both) / len(everyone)
    if not small or not large:
        return WriteShare(layer.layer, weighting, share, 0.0, 0.0, 0.0)
    product = float(part @ whole)
    return WriteShare(layer.layer, weighting, share, small / large, product / large**2, product / (small * large))
