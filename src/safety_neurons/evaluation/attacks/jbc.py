"""JBC: one persona for every request, the best known of those that users wrote on jailbreakchat.com, called AIM
(always intelligent and Machiavellian).
"""

from safety_neurons.evaluation.attacks.published import BUDGET, Artifact, Published


class JBC(Artifact):
    """The published prompts of JBC; local files may be called aim.TARGET.jsonl, after the persona."""

    published = Published(
        method="JBC",
        revision="1b8eaeb1d71869cf2621cbe8f1f3dbf6b8fe8d4c",
        kinds={
            "vicuna-13b-v1.5": "manual",
            "llama-2-7b-chat-hf": "manual",
            "gpt-3.5-turbo-1106": "manual",
            "gpt-4-0125-preview": "manual",
        },
        aliases=("aim",),
    )


ATTACK = JBC(
    name="jbc",
    source="jailbreakchat.com; prompts from JailbreakBench (arXiv:2404.01318)",
    description="Sends the request to AIM, a persona without morals that users passed around.",
    budget=BUDGET,
)
