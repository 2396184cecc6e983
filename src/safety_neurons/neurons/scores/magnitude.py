"""The paper's score: the mean length of what a neuron writes."""

from safety_neurons.neurons.scores.score import Evidence, NeuronValues, Score


def compute(evidence: Evidence) -> tuple[NeuronValues, NeuronValues]:
    harmful, benign = (
        [mean * norm for mean, norm in zip(side.mean_absolute, evidence.write_norm_2, strict=True)]
        for side in (evidence.harmful, evidence.benign)
    )
    return harmful, benign


SCORE = Score(
    name="magnitude",
    formula="mean|a_i| * ||r_i||_2",
    source="Zhao, Ke, Huang, EACL 2026",
    tokens="last",
    scope="layer",
    contrastive=False,
    compute=compute,
)
