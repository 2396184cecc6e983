"""Sets of the same size from every score, and how alike sets and rankings are."""

import itertools
from collections.abc import Sequence

import numpy
import torch
from scipy.stats import spearmanr

from safety_neurons.find.find import ScoredNeurons
from safety_neurons.find.neuron_set import NeuronSet

# Rankings of each side are cut at up to half the neurons, in steps of this factor.
STEP = 1.1
WIDEST = 50.0


def of_size(scored: ScoredNeurons, percent: float) -> NeuronSet:
    """The set of a score that has `percent` of the neurons, or as nearly as can be.

    A contrastive score's budget is its size. The set difference of two rankings has a size that only a search for
    the cut tells; the nearest of a row of cuts is taken.
    """
    if scored.score.contrastive:
        return scored.top(percent)
    target = percent / 100 * sum(len(site) for site in scored.harmful)
    best = scored.top(percent)
    cut = percent / 2
    while cut <= WIDEST:
        found = scored.top(cut)
        if abs(len(found) - target) < abs(len(best) - target):
            best = found
        if len(found) >= target:
            break
        cut *= STEP
    return best


def jaccard(first: NeuronSet, second: NeuronSet) -> float:
    """Shared neurons by all neurons of two sets; 1 for two empty ones."""
    shared = union = 0
    for one, other in zip(first.both, second.both, strict=True):
        common = int(torch.isin(one, other).sum())
        shared += common
        union += len(one) + len(other) - common
    return shared / union if union else 1.0


def ranking(scored: ScoredNeurons) -> numpy.ndarray:
    """The numbers by which the neurons are ranked: of both sides where they compare them, or of harmful prompts."""
    harmful = torch.cat(scored.harmful)
    if scored.score.contrastive:
        harmful = torch.maximum(harmful, torch.cat(scored.benign))
    return harmful.numpy()


def mean_jaccard(sets: Sequence[NeuronSet]) -> float | None:
    """Over all pairs; None where there is no pair."""
    pairs = list(itertools.combinations(sets, 2))
    return sum(jaccard(*pair) for pair in pairs) / len(pairs) if pairs else None


def mean_spearman(scored: Sequence[ScoredNeurons]) -> float | None:
    """The mean rank correlation over all pairs; None where there is no pair."""
    pairs = list(itertools.combinations([ranking(one) for one in scored], 2))
    found = [float(spearmanr(*pair).statistic) for pair in pairs]
    # A score that is the same for all neurons ranks nothing.
    return sum(found) / len(found) if found and not numpy.isnan(found).any() else None
