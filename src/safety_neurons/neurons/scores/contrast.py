"""The difference of mean activations at the last prompt token, without neurons that are active on every prompt.

As in the source, such universal neurons are among the model's top 0.1% by |activation| on at least 80% of the prompts.
The source removes them from the selection; here they are removed before it, so that the budget is met.
"""

from safety_neurons.neurons.scores.score import Evidence, NeuronValues, Score, by_side

UNIVERSAL_SHARE = 0.8


def compute(evidence: Evidence) -> tuple[NeuronValues, NeuronValues]:
    harmful, benign = evidence.harmful, evidence.benign
    share = harmful.prompts / (harmful.prompts + benign.prompts)
    values = []
    for on_harmful, on_benign, top_harmful, top_benign in zip(
        harmful.mean, benign.mean, harmful.top_share, benign.top_share, strict=True
    ):
        universal = share * top_harmful + (1 - share) * top_benign >= UNIVERSAL_SHARE
        values.append((on_harmful - on_benign).abs().masked_fill(universal, -1.0))
    return by_side(values, evidence)


SCORE = Score(
    name="contrast",
    formula="|mean a_i(H) - mean a_i(B)|, universal neurons dropped",
    source="CNA, arXiv 2605.12290",
    tokens="last",
    scope="model",
    contrastive=True,
    compute=compute,
)
