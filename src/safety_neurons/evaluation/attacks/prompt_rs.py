"""Prompt and random search: a long template with rules, and a suffix found by trying random changes."""

from safety_neurons.evaluation.attacks.published import BUDGET, Artifact, Published


class PromptRS(Artifact):
    """The published prompts of prompt and random search."""

    published = Published(
        method="prompt_with_random_search",
        revision="1ca21dea45638450b1457a09da389cf9f700ed67",
        kinds={
            "vicuna-13b-v1.5": "black_box",
            "llama-2-7b-chat-hf": "black_box",
            "gpt-3.5-turbo-1106": "black_box",
            "gpt-4-0125-preview": "black_box",
        },
    )


ATTACK = PromptRS(
    name="prompt-rs",
    source="Andriushchenko et al. 2024, Jailbreaking Leading LLMs (arXiv:2404.02151); prompts from JailbreakBench",
    description="Sends the request in a template with rules and a suffix that random search found on another model.",
    budget=BUDGET,
)
