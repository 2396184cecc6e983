"""DSN: a suffix like GCG's, found so that agreement becomes likely and refusals unlikely."""

from safety_neurons.evaluation.attacks.published import BUDGET, Artifact, Published


class DSN(Artifact):
    """The published prompts of DSN."""

    published = Published(
        method="DSN",
        revision="909e68c01d94222b8ad2e397a017e2e12e2adb73",
        kinds={
            "vicuna-13b-v1.5": "white_box",
            "llama-2-7b-chat-hf": "white_box",
        },
    )


ATTACK = DSN(
    name="dsn",
    source="Zhou et al. 2024, Don't Say No (arXiv:2404.16369); prompts from JailbreakBench",
    description="Appends a suffix without meaning that was found on another model to make refusals unlikely.",
    budget=BUDGET,
)
