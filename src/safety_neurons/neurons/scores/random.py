"""The control: random neurons."""

import torch

from safety_neurons.neurons.scores.score import Evidence, NeuronValues, Score, by_side


def compute(evidence: Evidence) -> tuple[NeuronValues, NeuronValues]:
    generator = torch.Generator().manual_seed(evidence.seed)
    values = [torch.rand(norm.shape, generator=generator) for norm in evidence.write_norm_2]
    return by_side(values, evidence)


SCORE = Score(
    name="random",
    formula="uniform random",
    source="the control that every claim needs",
    tokens="last",
    scope="model",
    contrastive=True,
    compute=compute,
)
