"""PAIR: another language model rewrites the request, again and again, until the model under attack answers."""

from safety_neurons.evaluation.attacks.published import BUDGET, Artifact, Published


class PAIR(Artifact):
    """The published prompts of PAIR."""

    published = Published(
        method="PAIR",
        revision="1b8eaeb1d71869cf2621cbe8f1f3dbf6b8fe8d4c",
        kinds={
            "vicuna-13b-v1.5": "black_box",
            "llama-2-7b-chat-hf": "black_box",
            "gpt-3.5-turbo-1106": "black_box",
            "gpt-4-0125-preview": "black_box",
        },
    )


ATTACK = PAIR(
    name="pair",
    source="Chao et al. 2023, Jailbreaking in Twenty Queries (arXiv:2310.08419); prompts from JailbreakBench",
    description="Sends the request as a language model rewrote it to get past another model.",
    budget=BUDGET,
)
