"""The refusal direction, ablated in all layers or added after one.

Arditi et al. 2024, Refusal in Language Models Is Mediated by a Single Direction (arXiv 2406.11717): the difference of
means between harmful and harmless prompts at one layer and one position after the instruction. Ablation takes the
stream's component along it away from everything that is written to the stream, at all tokens; that is the same as their
orthogonalized weights, where no norm follows the matrices. Addition adds the difference itself after its layer, at all
tokens. Strength 1 is the paper's. The layer and the position are chosen on validation prompts.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn

from rivals.contract import Candidate, Lessons
from rivals.difference_in_means import add
from rivals.residual import ResidualSteering
from safety_neurons.calibration.config import Toward
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.neurons.trace import decoder_layers


def refusal_direction(lessons: Lessons, toward: Toward) -> list[Candidate]:
    """A candidate for each layer, at the first and the last position after the instruction.

    Raises:
        SafetyNeuronsError: toward conformity, norms change what attention and MLP write before it is added.
    """
    model, found = lessons.run.model, []
    if toward == "conformity" and any(point.post_norm for point in model.hook_points):
        raise SafetyNeuronsError(
            f"{model.name} has a norm between each MLP and the residual stream (as in Gemma 2 and 3, and OLMo 2): "
            "ablating the output of the MLP does not ablate what is written. Leave refusal direction out of --rivals."
        )
    layers = decoder_layers(model.model)
    positions = lessons.harmful.shape[2]
    for layer in lessons.layers:
        for position in sorted({0, positions - 1}):
            direction = lessons.harmful[:, layer, position].mean(0) - lessons.benign[:, layer, position].mean(0)
            name = f"layer {layer}, position {position - positions}"
            key = f"refusal direction {toward} {name} {direction.tolist()}"

            def steer(strength: float, layer: int = layer, key: str = key, r: Tensor = direction) -> ResidualSteering:
                if toward == "rejection":
                    return ResidualSteering(f"{key} {strength}", [(layers[layer], partial(add, strength * r))], None)
                edit = partial(ablate, r / r.norm(), strength)
                written = [(module, edit) for each in layers for module in writers(each)]
                # What the embeddings write, too.
                return ResidualSteering(f"{key} {strength}", written, None, [(layers[0], edit)])

            changed = len(direction) * (1 if toward == "rejection" else len(layers))
            found.append(Candidate(name, changed, lessons.residual_values, "residual values", steer))
    return found


def writers(layer: nn.Module) -> list[nn.Module]:
    """The attention and the MLP of a layer: its children that hold matrices."""
    children: list[Any] = list(layer.children())
    return [child for child in children if any(weight.dim() > 1 for weight in child.parameters())]


def ablate(direction: Tensor, strength: float, written: Tensor) -> Tensor:
    """What is written [tokens, hidden], without the fraction `strength` of its component along a unit direction."""
    unit = direction.to(written.device)
    return written - strength * (written @ unit)[:, None] * unit
