"""Do the neurons say refusal together, or each alone? A test of the vocabulary, layer by layer.

For every layer and side the set's weighted sum p = sum of w_i * r_i is measured with two lexicons (`meter`: the AUROC
of the lexicon's tokens among other words, by logit) beside

- R random sets of as many neurons from anywhere in the layer, weighted by the same rule with their own mean
  activations: a permutation test, p = (1 + sets that score at least as high) / (1 + R), one-sided;
- the set's neurons one by one, each in the direction in which its weight moves it, beside R random single neurons;
- the logit lens: the mean residual stream at the prompt's last token after the layer, weighted by the same rule
  (harmful less benign for "difference" and the rejection side, and so on).

P-values are adjusted over the layers of one side, weighting and lexicon (Benjamini-Hochberg).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import false_discovery_control
from torch import Tensor
from torch.nn import functional

from safety_neurons.core.progress import Advance, ignore
from safety_neurons.explanation.lexicon import VocabularyMeter
from safety_neurons.explanation.readout import Readout, ResidualMeans
from safety_neurons.explanation.vocabulary_scores import SIGNIFICANT, LensScore, OverallScore, SetScore, VocabularyTest
from safety_neurons.explanation.writes import SIDES, WEIGHTINGS, LayerWrites, layer_writes
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet

# Of one layer, weighting, side and lexicon: the score so far without its adjusted p, and the random sets' AUROCs.
_Measured = tuple[SetScore, np.ndarray]


def vocabulary_test(
    model: ChatModel,
    neurons: NeuronSet,
    *,
    random_sets: int = 200,
    residuals: ResidualMeans | None = None,
    seed: int = 0,
    advance: Advance = ignore,
    readout: Readout | None = None,
) -> VocabularyTest:
    """Measure the set, its single neurons and the residual stream with the lexicons, against random neurons.

    Args:
        random_sets: R; the smallest p is 1 / (1 + R), so that one layer alone among L needs R >= 20 L.
        residuals: means of the same kinds of prompts (`mean_residuals`); without them there is no logit lens.
        seed: of the random sets and of the other words.
        advance: told of every layer when it is done.

    Raises:
        SafetyNeuronsError: the neurons came without directions or fit another model, or there is no unembedding.
    """
    generator = torch.Generator().manual_seed(seed)
    meter = VocabularyMeter.of(readout or Readout.of(model), generator)
    measured: list[_Measured] = []
    for layer in layer_writes(model, neurons):
        if meter.names:
            measured += _measure_layer(meter, layer, random_sets, generator)
        advance(1)
    lens = _lens(meter, residuals) if residuals and meter.names else []
    scores: list[SetScore] = []
    overall: list[OverallScore] = []
    for weighting in WEIGHTINGS:
        for side in SIDES:
            for lexicon in meter.names:
                key = (weighting, side, lexicon)
                mine = [one for one in measured if (one[0].weighting, one[0].side, one[0].lexicon) == key]
                if mine:
                    adjusted = _adjusted([score for score, _ in mine])
                    scores += adjusted
                    read = [one for one in lens if (one.weighting, one.side, one.lexicon) == key]
                    overall.append(_overall(adjusted, np.stack([random for _, random in mine]), read))
    return VocabularyTest(
        random_sets, len(meter.reference), seed, meter.lexicons, tuple(scores), tuple(overall), tuple(lens)
    )


def permutation_p(observed: float, random: np.ndarray) -> float:
    """The one-sided p of a permutation test; the observed set is one of the permutations."""
    return float((1 + (random >= observed).sum()) / (1 + len(random)))


def _measure_layer(
    meter: VocabularyMeter, layer: LayerWrites, random_sets: int, generator: torch.Generator
) -> Iterator[_Measured]:
    width = len(layer.vectors)
    drawn = torch.randperm(width, generator=generator)[:random_sets].to(layer.vectors.device)
    random_single = _Singles(meter, layer, drawn)
    for side in SIDES:
        found = layer.found(side)
        if not len(found):
            continue
        sets = torch.stack([torch.randperm(width, generator=generator)[: len(found)] for _ in range(random_sets)])
        # Sorted, so that the same neurons add up to the same sum.
        sets = torch.cat([found.cpu()[None], sets]).sort(1).values.to(layer.vectors.device)
        single = _Singles(meter, layer, found)
        for weighting in WEIGHTINGS:
            weights = layer.weights(side, weighting)
            sums = functional.embedding_bag(sets, layer.vectors, per_sample_weights=weights[sets], mode="sum")
            for lexicon, (auroc, top) in meter.measure(sums).items():
                own, own_top = single.scores(lexicon, weights)
                others, _ = random_single.scores(lexicon, weights)
                limit = float(np.quantile(others, 0.95))
                low, high = np.quantile(auroc[1:], (0.025, 0.975))
                p = permutation_p(auroc[0], auroc[1:])
                score = SetScore(
                    weighting,
                    side,
                    lexicon,
                    layer.layer,
                    len(found),
                    join_processes=float(auroc[0]),
                    random=float(auroc[1:].mean()),
                    random_low=float(low),
                    random_high=float(high),
                    p=p,
                    p_adjusted=p,
                    single=float(own.mean()),
                    single_max=float(own.max()),
                    single_above=int((own > limit).sum()),
                    random_single=float(others.mean()),
                    random_single_95=limit,
                    together_top=float(top[0]),
                    random_top=float(top[1:].mean()),
                    single_top=float(own_top.mean()),
                )
                yield score, auroc[1:]


class _Singles:
    """Neurons of a layer measured one by one, in both directions."""

    def __init__(self, meter: VocabularyMeter, layer: LayerWrites, neurons: Tensor) -> None:
        vectors = layer.vectors[neurons]
        self.neurons, self.up, self.down = neurons, meter.measure(vectors), meter.measure(-vectors)

    def scores(self, lexicon: str, weights: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and share of top words of every neuron, in the direction of its weight."""
        rises = (weights[self.neurons] >= 0).cpu().numpy()
        up, down = self.up[lexicon], self.down[lexicon]
        return np.where(rises, up.auroc, down.auroc), np.where(rises, up.top, down.top)


def _adjusted(scores: list[SetScore]) -> list[SetScore]:
    adjusted = false_discovery_control([score.p for score in scores])
    return [replace(score, p_adjusted=float(p)) for score, p in zip(scores, adjusted, strict=True)]


def _overall(scores: list[SetScore], random: np.ndarray, lens: list[LensScore]) -> OverallScore:
    """`random` [layers, random sets]: set number r of every layer makes up one random draw of the whole side."""
    means = random.mean(0)
    low, high = np.quantile(means, (0.025, 0.975))
    layers = {score.layer for score in scores}
    read = [one.auroc for one in lens if one.layer in layers]

    def mean(name: str) -> float:
        return float(np.mean([getattr(score, name) for score in scores]))

    first = scores[0]
    return OverallScore(
        first.weighting,
        first.side,
        first.lexicon,
        layers=len(scores),
        significant=sum(score.p_adjusted <= SIGNIFICANT for score in scores),
        join_processes=mean("together"),
        random=mean("random"),
        random_low=float(low),
        random_high=float(high),
        p=permutation_p(mean("together"), means),
        single=mean("single"),
        random_single=mean("random_single"),
        single_above=sum(score.single_above for score in scores) / sum(score.neurons for score in scores),
        lens=float(np.mean(read)) if read else None,
        together_top=mean("together_top"),
        random_top=mean("random_top"),
        single_top=mean("single_top"),
    )


def _lens(meter: VocabularyMeter, residuals: ResidualMeans) -> list[LensScore]:
    found = []
    for weighting in WEIGHTINGS:
        for side in SIDES:
            own, other = residuals.harmful, residuals.benign
            if side == "conformity":
                own, other = other, own
            measured = meter.measure(own - other if weighting == "difference" else own)
            for lexicon, (auroc, top) in measured.items():
                found += [
                    LensScore(weighting, side, lexicon, layer, float(auroc[layer]), float(top[layer]))
                    for layer in range(len(auroc))
                ]
    return found
