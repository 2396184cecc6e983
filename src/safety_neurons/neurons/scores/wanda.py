"""Wanda's pruning score on the response tokens, as in the code of the paper's authors."""

from safety_neurons.neurons.scores.score import Evidence, NeuronValues, Score


def compute(evidence: Evidence) -> tuple[NeuronValues, NeuronValues]:
    harmful, benign = (
        [
            (square * count).sqrt() * norm
            for square, count, norm in zip(side.mean_square, side.count, evidence.write_norm_1, strict=True)
        ]
        for side in (evidence.harmful, evidence.benign)
    )
    return harmful, benign


SCORE = Score(
    name="wanda",
    formula="||a_i||_2 * ||r_i||_1 over response tokens",
    source="Sun et al. 2024; Wei et al. 2024",
    tokens="response",
    scope="layer",
    contrastive=False,
    compute=compute,
)
