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
from safety_neurons.models.positions import PromptPositions, follow_positions
from safety_neurons.models.sites import Activations, activation_hooks

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
        hooks = []
        for site, indices, harmful, benign in zip(
            model.sites, neurons.both, directions.harmful, directions.benign, strict=True
        ):
            if not len(indices):
                continue
            shift = (sign * (benign - harmful))[:, indices]
            # One row for each position that is calibrated, and the last again for generated tokens.
            table = torch.cat([shift[len(shift) - prompt_positions :], shift[-1:]])
            hooks.append((site, _Shift(where, indices, table, prompt_positions, generated_tokens)))
        stack.enter_context(activation_hooks(hooks))
        yield model


class _Shift:
    """Adds one site's shift at the calibrated positions; everything else passes untouched."""

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

    def __call__(self, activations: Activations) -> Tensor | None:
        offsets, values = activations.of_tokens(self.where.offsets), activations.values
        calibrated = ((offsets >= self.first) & (offsets < self.end)).to(values.device)
        mine = (self.indices >= activations.first) & (self.indices < activations.first + values.shape[-1])
        if not calibrated.any() or not mine.any():
            return None
        columns = (self.indices[mine] - activations.first).to(values.device)
        positions = offsets.to(values.device)[calibrated].clamp(max=0) - self.first
        table = self.table[:, mine].to(values.device, values.dtype)
        changed = values.clone()
        rows = calibrated.nonzero()
        changed[rows, columns] = changed[rows, columns] + table[positions]
        return changed
