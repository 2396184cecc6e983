"""The vocabulary test: do the neurons say refusal together, or each alone? Measured layer by layer.

For every layer and side the set's weighted sum of w_i * r_i is measured with two lexicons (`lexicon`: the AUROC of the
lexicon's tokens among other words, by logit) and compared with

- R random sets of as many neurons of the layer, weighted by the same rule with their own mean activations: a one-sided
  permutation test, p = (1 + number of sets that score at least as high) / (1 + R);
- the set's neurons one by one, each times the sign of its weight, and R random single neurons;
- the logit lens: the mean residual stream at the last prompt token after the layer, weighted by the same rule (harmful
  minus benign for "difference" and the rejection side, and so on).

P-values are adjusted over the layers of one side, weighting and lexicon (Benjamini-Hochberg).
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import false_discovery_control
from torch import Tensor
from torch.nn import functional

from safety_neurons.core.progress import Advance, ignore
from safety_neurons.core.tables import Table, numbers, row
from safety_neurons.explanation.lexicon import LEXICONS, MatchedLexicon, VocabularyMeter, sort_rows
from safety_neurons.explanation.readout import Readout, ResidualMeans
from safety_neurons.explanation.writes import SIDES, WEIGHTINGS, LayerWrites, Side, Weighting, layer_writes
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet

# The lexicon that a side's neurons are expected to promote.
OWN_LEXICON: dict[Side, str] = {"rejection": "refusal", "conformity": "compliance"}
SIGNIFICANT = 0.05
STATISTIC = "AUROC of the lexicon's tokens among other words, by logit; 0.5 is chance"


@dataclass(frozen=True)
class _Score:
    """What was measured: the neurons of a side, their weighting and the lexicon."""

    weighting: Weighting
    side: Side
    lexicon: str

    @property
    def key(self) -> tuple[Weighting, Side, str]:
        return self.weighting, self.side, self.lexicon


@dataclass(frozen=True)
class SetScore(_Score):
    """One layer's neurons of one side, measured with one lexicon; AUROCs, and shares of top words in `..._top`.

    `together` is the score of the weighted sum, `random` the mean of the random sets, and `random_low` to `random_high`
    their middle 95%. `single` and `single_max` are the mean and the maximum of the set's single neurons; `single_above`
    of them exceed `random_single_95`, the 95th percentile of random single neurons (5% is chance), whose mean is
    `random_single`.
    """

    layer: int
    neurons: int
    together: float
    random: float
    random_low: float
    random_high: float
    p: float
    p_adjusted: float
    single: float
    single_max: float
    single_above: int
    random_single: float
    random_single_95: float
    together_top: float
    random_top: float
    single_top: float


@dataclass(frozen=True)
class OverallScore(_Score):
    """The means of a side's scores over its layers; `p` is that of the mean, by the same random sets.

    `single_above` is the share of the set's neurons above the 95th percentile of their layer; `lens` is None without
    the means of the residual stream.
    """

    layers: int
    significant: int
    together: float
    random: float
    random_low: float
    random_high: float
    p: float
    single: float
    random_single: float
    single_above: float
    lens: float | None
    together_top: float
    random_top: float
    single_top: float


@dataclass(frozen=True)
class LensScore(_Score):
    """The residual stream after a layer, measured with one lexicon."""

    layer: int
    auroc: float
    top: float


@dataclass(frozen=True)
class VocabularyTest:
    """The result of the test; empty if no word of a lexicon is a token of the model."""

    random_sets: int
    reference_tokens: int
    seed: int
    lexicons: tuple[MatchedLexicon, ...]
    scores: tuple[SetScore, ...]
    overall: tuple[OverallScore, ...]
    lens: tuple[LensScore, ...]

    def own(self, side: Side, weighting: Weighting) -> list[SetScore]:
        """A side's scores with its own lexicon, by layer."""
        key = (weighting, side, OWN_LEXICON[side])
        return [score for score in self.scores if score.key == key]

    def first_readable(self, side: Side, weighting: Weighting) -> int | None:
        """The first layer with readable words of a side, or None.

        That is the lowest layer whose weighted sum scores significantly higher (adjusted p <= 0.05) than random sets
        with the side's own lexicon: refusal for rejection, compliance for conformity.
        """
        return next((score.layer for score in self.own(side, weighting) if score.p_adjusted <= SIGNIFICANT), None)

    def to_json(self) -> dict[str, Any]:
        """All scores, the name of the statistic, and the first readable layers."""
        lexicons = [
            {"name": each.name, "words": len(LEXICONS[each.name]), "tokens": len(each.tokens), "missing": each.missing}
            for each in self.lexicons
        ]
        first = [
            {"side": side, "weighting": weighting, "layer": self.first_readable(side, weighting)}
            for side in SIDES
            for weighting in WEIGHTINGS
        ]
        return asdict(self) | {"statistic": STATISTIC, "lexicons": lexicons, "first_readable": first}

    def tables(self, weighting: Weighting = "difference") -> Iterator[Table]:
        """A table for each side with neurons, of its own lexicon."""
        for side in SIDES:
            if scores := self.own(side, weighting):
                yield self._table(side, weighting, scores)

    def _table(self, side: Side, weighting: Weighting, scores: list[SetScore]) -> Table:
        lexicon = OWN_LEXICON[side]
        first = self.first_readable(side, weighting)
        key = (weighting, side, lexicon)
        lens = {score.layer: score.auroc for score in self.lens if score.key == key}
        rows = [
            row(
                (
                    score.layer,
                    score.neurons,
                    f"{score.together:.2f}{'*' if score.p_adjusted <= SIGNIFICANT else ''}",
                    f"{score.random_low:.2f}-{score.random_high:.2f}",
                    f"{score.p_adjusted:.3f}",
                    f"{score.single:.2f}",
                    f"{score.single_above / score.neurons:.0%}",
                    f"{lens[score.layer]:.2f}" if score.layer in lens else "-",
                ),
                "section" if score is scores[-1] else "",
            )
            for score in scores
        ]
        mean = next(score for score in self.overall if score.key == key)
        rows.append(
            row(
                (
                    "mean",
                    sum(score.neurons for score in scores),
                    f"{mean.together:.2f}",
                    f"{mean.random_low:.2f}-{mean.random_high:.2f}",
                    f"{mean.p:.3f}",
                    f"{mean.single:.2f}",
                    f"{mean.single_above:.0%}",
                    "-" if mean.lens is None else f"{mean.lens:.2f}",
                ),
                "mean",
            )
        )
        return Table.of(
            f"Do {side} neurons say {lexicon}? AUROC of {lexicon} words among others",
            numbers("layer", "neurons", "together", "random 95%", "p", "alone", "above", "logit lens"),
            rows,
            f"First readable layer: {'none' if first is None else first}. * p <= {SIGNIFICANT} against "
            f"{self.random_sets:,} random sets, adjusted for the layers. Alone: the mean of single neurons; above: the "
            "share of them above 95% of random ones (5% is chance).",
        )


# A score of one layer, still without its adjusted p, and the AUROCs of the random sets.
_Measured = tuple[SetScore, np.ndarray]


def vocabulary_test(
    model: ChatModel,
    neurons: NeuronSet,
    *,
    random_sets: int = 200,
    residuals: ResidualMeans | None = None,
    seed: int = 0,
    advance: Advance = ignore,
) -> VocabularyTest:
    """Measure the set, its single neurons and the residual stream with the lexicons, compared with random neurons.

    Args:
        random_sets: R; the smallest p is 1 / (1 + R), so a single significant layer among L needs R >= 20 L.
        residuals: means of the residual stream on the same kinds of prompts (`mean_residuals`), for the logit lens.
        seed: seed of the random sets and the other words.
        advance: called after every layer.

    Raises:
        SafetyNeuronsError: the neurons have no directions or fit another model, or there is no unembedding.
    """
    return compare_layers(Readout.of(model), layer_writes(model, neurons), random_sets, residuals, seed, advance)


def compare_layers(
    readout: Readout,
    layers: Iterable[LayerWrites],
    random_sets: int,
    residuals: ResidualMeans | None,
    seed: int,
    advance: Advance,
) -> VocabularyTest:
    """`vocabulary_test` of layers that are read once, one at a time."""
    generator = torch.Generator().manual_seed(seed)
    meter = VocabularyMeter.of(readout, generator)
    measured: list[_Measured] = []
    for layer in layers:
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
                matching = [pair for pair in measured if pair[0].key == key]
                if matching:
                    adjusted = _adjusted([score for score, _ in matching])
                    scores += adjusted
                    read = [score for score in lens if score.key == key]
                    overall.append(_overall(adjusted, np.stack([random for _, random in matching]), read))
    return VocabularyTest(
        random_sets, len(meter.reference), seed, meter.lexicons, tuple(scores), tuple(overall), tuple(lens)
    )


def permutation_p(observed: float, random: np.ndarray) -> float:
    """The one-sided p of a permutation test, which counts the observed value as a permutation."""
    return float((1 + (random >= observed).sum()) / (1 + len(random)))


def _measure_layer(
    meter: VocabularyMeter, layer: LayerWrites, random_sets: int, generator: torch.Generator
) -> Iterator[_Measured]:
    width = len(layer.vectors)
    drawn = torch.randperm(width, generator=generator)[:random_sets].to(layer.vectors.device)
    if not len(layer.rejection) and not len(layer.conformity):
        return
    random_single = _Singles(meter, layer, drawn)
    for side in SIDES:
        found = layer.found(side)
        if not len(found):
            continue
        sets = torch.stack([torch.randperm(width, generator=generator)[: len(found)] for _ in range(random_sets)])
        # Sorted, so that the same neurons always add up to the same sum.
        sets = sort_rows(torch.cat([found.cpu()[None], sets])).to(layer.vectors.device)
        single = _Singles(meter, layer, found)
        for weighting in WEIGHTINGS:
            weights = layer.weights(side, weighting)
            sums = functional.embedding_bag(sets, layer.vectors, per_sample_weights=weights[sets], mode="sum")
            for lexicon, (auroc, top, _) in meter.measure(sums).items():
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
                    together=float(auroc[0]),
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
        self.neurons = neurons
        self.up, self.down = meter.measure_both(layer.vectors[neurons])

    def scores(self, lexicon: str, weights: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and share of top words of every neuron, times the sign of its weight."""
        rises = (weights[self.neurons] >= 0).cpu().numpy()
        up, down = self.up[lexicon], self.down[lexicon]
        return np.where(rises, up.auroc, down.auroc), np.where(rises, up.top, down.top)


def _adjusted(scores: list[SetScore]) -> list[SetScore]:
    adjusted = false_discovery_control([score.p for score in scores])
    return [replace(score, p_adjusted=float(p)) for score, p in zip(scores, adjusted, strict=True)]


def _overall(scores: list[SetScore], random: np.ndarray, lens: list[LensScore]) -> OverallScore:
    """The means over layers; random set number r of every layer together form one draw in `random` [layers, sets]."""
    means = random.mean(0)
    low, high = np.quantile(means, (0.025, 0.975))
    layers = {score.layer for score in scores}
    read = [score.auroc for score in lens if score.layer in layers]

    def mean(name: str) -> float:
        return float(np.mean([getattr(score, name) for score in scores]))

    first = scores[0]
    return OverallScore(
        first.weighting,
        first.side,
        first.lexicon,
        layers=len(scores),
        significant=sum(score.p_adjusted <= SIGNIFICANT for score in scores),
        together=mean("together"),
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
            for lexicon, (auroc, top, _) in measured.items():
                found += [
                    LensScore(weighting, side, lexicon, layer, float(auroc[layer]), float(top[layer]))
                    for layer in range(len(auroc))
                ]
    return found
