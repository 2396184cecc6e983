"""Cohen's d: the difference of mean activations in units of how much they vary within each side."""

import torch
from torch import Tensor

from safety_neurons.neurons.scores.score import Evidence, Layers, Score, by_side

# Activations that vary less than this share of their size do so by rounding alone.
ROUNDING = 1e-6


def compute(evidence: Evidence) -> tuple[Layers, Layers]:
    harmful, benign = evidence.harmful, evidence.benign
    sides = zip(
        harmful.mean,
        benign.mean,
        harmful.variance,
        benign.variance,
        harmful.count,
        benign.count,
        strict=True,
    )
    return by_side([cohens_d(*point).abs() for point in sides], evidence)


def cohens_d(
    mean: Tensor, other_mean: Tensor, variance: Tensor, other_variance: Tensor, count: Tensor, other_count: Tensor
) -> Tensor:
    """(mean - other) / pooled standard deviation (Cohen 1988, equation 2.5.1 and 2.5.2): float32 [neurons].

    The variances are of the sample (divided by the count). Zero where a side has no tokens or nothing varies.
    """
    # Equal to weighing the unbiased variances with count - 1.
    squares = variance * count + other_variance * other_count
    pooled = (squares / (count + other_count - 2).clamp_min(1)).sqrt()
    varies = pooled > ROUNDING * torch.maximum(mean.abs(), other_mean.abs())
    known = varies & (count > 0) & (other_count > 0) & (count + other_count > 2)
    return torch.where(known, (mean - other_mean) / pooled.where(known, 1.0), 0.0)


SCORE = Score(
    name="effect-size",
    formula="|mean a_i(H) - mean a_i(B)| / pooled sd",
    source="SafeNeuron, arXiv 2602.12158",
    tokens="last",
    scope="model",
    contrastive=True,
    compute=compute,
    tested=True,
)
