"""No attack at all: the request as it is, the baseline of every comparison."""

from safety_neurons.evaluation.contracts import Template
from safety_neurons.models.chat import AttackedPrompt


def apply(request: str) -> AttackedPrompt:
    """The request, unchanged."""
    return AttackedPrompt(request)


ATTACK = Template(
    name="direct",
    source="baseline",
    description="The request as it is.",
    apply=apply,
)
