"""GCG: a suffix without meaning, found with the model's gradients so that an agreeing answer becomes likely."""

from safety_neurons.evaluation.attacks.published import BUDGET, Artifact, Published


class GCG(Artifact):
    """The published prompts of GCG."""

    published = Published(
        method="GCG",
        revision="1b8eaeb1d71869cf2621cbe8f1f3dbf6b8fe8d4c",
        kinds={
            "vicuna-13b-v1.5": "white_box",
            "llama-2-7b-chat-hf": "white_box",
            "gpt-3.5-turbo-1106": "transfer",
            "gpt-4-0125-preview": "transfer",
        },
    )


ATTACK = GCG(
    name="gcg",
    source="Zou et al. 2023, Universal and Transferable Attacks (arXiv:2307.15043); prompts from JailbreakBench",
    description="Appends a suffix without meaning that gradients found on another model.",
    budget=BUDGET,
)
