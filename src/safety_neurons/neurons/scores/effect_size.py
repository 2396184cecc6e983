"""Cohen's d: the difference of mean activations in units of the pooled standard deviation."""

import torch
from torch import Tensor

from safety_neurons.neurons.scores.score import Evidence, NeuronValues, Score, by_side

# Variation below this share of the mean is rounding.
ROUNDING = 1e-6


def compute(evidence: Evidence) -> tuple[NeuronValues, NeuronValues]:
    harmful, benign = evidence.harmful, evidence.benign
    moments = (harmful.mean, benign.mean, harmful.variance, benign.variance, harmful.count, benign.count)
    return by_side([cohens_d(*values).abs() for values in zip(*moments, strict=True)], evidence)


def cohens_d(
    mean: Tensor, other_mean: Tensor, variance: Tensor, other_variance: Tensor, count: Tensor, other_count: Tensor
) -> Tensor:
    """(mean - other) / pooled standard deviation (Cohen 1988, equation 2.5.1 and 2.5.2): float32 [neurons].

    The variances are those of the sample (divided by the count). 0 if a side has no tokens or nothing varies.
    """
    # The same as the unbiased variances weighted by count - 1.
    squares = variance * count + other_variance * other_count
    pooled = (squares / (count + other_count - 2).clamp_min(1)).sqrt()
    varies = pooled > ROUNDING * torch.maximum(mean.abs(), other_mean.abs())
    valid = varies & (count > 0) & (other_count > 0) & (count + other_count > 2)
    return torch.where(valid, (mean - other_mean) / pooled.where(valid, 1.0), 0.0)


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
