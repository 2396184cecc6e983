"""The difference of mean activations, weighted by the norm of the write vector."""

from safety_neurons.neurons.scores.score import Evidence, NeuronValues, Score, by_side


def compute(evidence: Evidence) -> tuple[NeuronValues, NeuronValues]:
    values = [
        (on_harmful - on_benign).abs() * norm
        for on_harmful, on_benign, norm in zip(
            evidence.harmful.mean, evidence.benign.mean, evidence.write_norm_2, strict=True
        )
    ]
    return by_side(values, evidence)


SCORE = Score(
    name="write-contrast",
    formula="|mean a_i(H) - mean a_i(B)| * ||r_i||_2",
    source="this project",
    tokens="last",
    scope="model",
    contrastive=True,
    compute=compute,
)
