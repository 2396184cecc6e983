"""Which tokens of a forward pass are calibrated: worked out once a pass, not once a layer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from safety_neurons.models.positions import PADDING, PromptPositions
from safety_neurons.models.sites import Activations


@dataclass(frozen=True)
class Tokens:
    """The calibrated tokens of a pass, and which row of a table of directions each of them takes.

    `steps` [batch, tokens] holds the row, or -1 where nothing is calibrated. `rows` [calibrated] are the same
    tokens in the flattened batch; None stands for all of them.
    """

    steps: Tensor
    rows: Tensor | None

    def of(self, activations: Activations) -> tuple[Tensor, Tensor | None]:
        """The table's row of each calibrated row of these activations, and which rows those are (None: all)."""
        device = activations.values.device
        if activations.tokens is None:
            steps = activations.of_tokens(self.steps).to(device)
            return (steps, None) if self.rows is None else (steps[self.rows.to(device)], self.rows.to(device))
        steps = activations.of_tokens(self.steps).to(device)
        rows = (steps >= 0).nonzero().flatten()
        return steps[rows], rows


class TokenWindow:
    """The last positions of the prompt and the first generated tokens, of all sequences or of some.

    A table of directions has a row for what lies before the known `positions` of the prompt's end, one for each of
    these, and one for generated tokens. `prompt` and `answer` are how many tokens are calibrated; None stands for all.
    """

    def __init__(self, where: PromptPositions, positions: int, prompt: int | None, answer: int | None) -> None:
        self.where, self.positions, self.prompt, self.answer = where, positions, prompt, answer
        self._sequences: Tensor | None = None
        self._nobody = False
        self._decide: Callable[[], Tensor] | None = None
        self._pass: Tensor | None = None
        self._tokens: Tokens | None = None

    def choose(self, sequences: Tensor) -> None:
        """From now on, calibrate only these sequences of the batch (bool [batch])."""
        self._sequences, self._nobody, self._pass = sequences, not bool(sequences.any()), None

    def defer(self, decide: Callable[[], Tensor]) -> None:
        """When tokens are next asked for, calibrate only the sequences that `decide` then names."""
        self._decide = decide

    def tokens(self) -> Tokens | None:
        """The calibrated tokens of the pass that is running, or None where there are none."""
        if self._decide is not None:
            decide, self._decide = self._decide, None
            self.choose(decide())
        if self._nobody:
            return None
        if self._pass is not self.where.offsets:
            self._pass, self._tokens = self.where.offsets, self._find()
        return self._tokens

    def _find(self) -> Tokens | None:
        answer, generated, offsets = self.answer, self.where.generated, self.where.offsets
        if answer is not None and generated is not None and generated >= answer:
            return None
        inside = offsets > PADDING
        if self.prompt is not None:
            inside &= offsets >= -self.prompt
        if answer is not None:
            inside &= offsets < answer
        if self._sequences is not None:
            inside &= self._sequences.to(inside.device)[:, None]
        if not inside.any():
            return None
        steps = torch.where(inside, (offsets + self.positions + 1).clamp(0, self.positions + 1), -1)
        return Tokens(steps, None if inside.all() else inside.flatten().nonzero().flatten())
