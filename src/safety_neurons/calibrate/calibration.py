"""ActCali: move the found neurons' activations along what tells harmful from benign prompts.

The paper's e' = e + alpha * d, exactly, in neuron space: a_i += alpha * (mean a_i(B) - mean a_i(H)) towards conformity,
and the reverse towards rejection (section 3.3). It is the causal test of the neurons, and towards rejection a guard.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find.neuron_set import NeuronSet
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.positions import PromptPositions, activation_hooks, follow_positions

Toward = Literal["rejection", "conformity"]


@contextlib.contextmanager
def calibrate(
    model: ChatModel,
    neurons: NeuronSet,
    *,
    toward: Toward,
    alpha: float,
    prompt_positions: int = 5,
    generated_tokens: int = 0,
) -> Iterator[ChatModel]:
    """Calibrate the neurons while the context is open; the model itself is left as it was.

    Args:
        toward: "rejection" makes benign prompts refused, "conformity" makes harmful prompts answered.
        alpha: how many times the difference of the mean activations is added.
        prompt_positions: at how many positions at the prompt's end; 0 leaves the prompt alone.
        generated_tokens: also while that many of the first generated tokens are read; they use the direction of the
            prompt's last position. The prompt's last position is the one that produces the first token.

    Raises:
        SafetyNeuronsError: the neurons came without directions, or belong to a model of another shape.
    """
    directions = neurons.directions
    if directions is None:
        raise SafetyNeuronsError(
            "These neurons came without directions; load them with directions=, or run find again."
        )
    neurons.check_fits(model)
    if prompt_positions > directions.positions:
        raise SafetyNeuronsError(
            f"Directions are known for the last {directions.positions} prompt positions, not for {prompt_positions}. "
            "Run find with more positions."
        )
    sign = alpha if toward == "conformity" else -alpha
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(follow_positions(model.model))
        hooks = {}
        for site, indices, harmful, benign in zip(
            model.sites, neurons.both, directions.harmful, directions.benign, strict=True
        ):
            if not len(indices):
                continue
            shift = (sign * (benign - harmful))[:, indices]
            # One row for each position that is calibrated, and the last again for generated tokens.
            table = torch.cat([shift[len(shift) - prompt_positions :], shift[-1:]])
            hooks[site.write] = _Shift(where, indices, table, prompt_positions, generated_tokens)
        stack.enter_context(activation_hooks(hooks))
        yield model


class _Shift:
    """Adds one layer's shift at the calibrated positions; everything else passes untouched."""

    def __init__(
        self,
        where: PromptPositions,
        indices: Tensor,
        table: Tensor,
        prompt_positions: int,
        generated_tokens: int,
    ) -> None:
        self.where, self.indices, self.table = where, indices, table
        self.first, self.end = -prompt_positions, generated_tokens

    def __call__(self, module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        activations, offsets = args[0], self.where.offsets
        calibrated = (offsets >= self.first) & (offsets < self.end)
        if not calibrated.any():
            return None
        self.indices = self.indices.to(activations.device)
        self.table = self.table.to(activations.device, activations.dtype)
        rows = offsets[calibrated].clamp(max=0) - self.first
        changed = activations.clone()
        flat = changed.view(-1, activations.shape[-1])
        tokens = calibrated.flatten().nonzero()
        flat[tokens, self.indices] = flat[tokens, self.indices] + self.table[rows]
        return (changed, *args[1:])
