"""The shift of activations at one hook point, and the tokens that it applies to (found once per forward pass)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from safety_neurons.calibration.config import CalibrationConfig
from safety_neurons.models.forward import PADDING, PromptPositions
from safety_neurons.models.neurons.hook_points import Activations


@dataclass(frozen=True)
class CalibratedTokens:
    """The calibrated tokens of a pass, and the row of a table of directions for each of them.

    `steps` [batch, tokens] is the row, or -1 where nothing is calibrated. `rows` [calibrated] are the same tokens in
    the flattened batch; None means all of them.
    """

    steps: Tensor
    rows: Tensor | None

    def of(self, activations: Activations) -> tuple[Tensor, Tensor | None]:
        """The table's row for each calibrated row of these activations, and the calibrated rows (None: all)."""
        device = activations.values.device
        steps = activations.of_tokens(self.steps).to(device)
        if activations.tokens is not None:
            rows = (steps >= 0).nonzero().flatten()
        elif self.rows is None:
            return steps, None
        else:
            rows = self.rows.to(device)
        return steps[rows], rows


class TokenWindow:
    """The last positions of the prompt and the first generated tokens, of all sequences or of some.

    `prompt` and `answer` are the numbers of tokens to calibrate; None means all. A table of directions has a row for
    tokens before the last `positions` of the prompt, one for each of these, and one for generated tokens.
    """

    def __init__(self, where: PromptPositions, positions: int, prompt: int | None, answer: int | None) -> None:
        self.where, self.positions, self.prompt, self.answer = where, positions, prompt, answer
        self._sequences: Tensor | None = None
        self._decide: Callable[[], Tensor] | None = None
        self._pass: Tensor | None = None
        self._tokens: CalibratedTokens | None = None

    def choose(self, sequences: Tensor) -> None:
        """From now on, calibrate only these sequences of the batch (bool [batch])."""
        self._sequences, self._pass = sequences, None

    def defer(self, decide: Callable[[], Tensor]) -> None:
        """When tokens are next needed, call `decide`, and calibrate only the sequences that it returns."""
        self._decide = decide

    def tokens(self) -> CalibratedTokens | None:
        """The calibrated tokens of the current pass, or None without any."""
        if self.where.paused:
            return None
        if self._decide is not None:
            decide, self._decide = self._decide, None
            self.choose(decide())
        if self._pass is not self.where.offsets:
            self._pass, self._tokens = self.where.offsets, self._find()
        return self._tokens

    def _find(self) -> CalibratedTokens | None:
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
        return CalibratedTokens(steps, None if inside.all() else inside.flatten().nonzero().flatten())


class Shift:
    """Moves the neurons `indices` of a hook point at the tokens of the window; all other values keep their bits.

    `away` and `target` are the mean activations [table rows, neurons] of the class to move away from and of the class
    to move toward.
    """

    def __init__(
        self,
        window: TokenWindow,
        indices: Tensor,
        away: Tensor,
        target: Tensor,
        alpha: float,
        config: CalibrationConfig,
    ) -> None:
        self.window, self.alpha, self.config = window, alpha, config
        self.chosen = torch.zeros(target.shape[1], dtype=torch.bool)
        self.chosen[indices] = True
        if config.edit == "add":
            shift = alpha * (target - away)
            # Adding -0.0 changes no number; adding 0.0 would turn -0.0 into 0.0.
            self.table = torch.where(self.chosen & (shift != 0), shift, -0.0)
        else:
            self.table = target
        self._placed: dict[tuple[torch.device, torch.dtype, int], tuple[Tensor, Tensor] | None] = {}

    def __call__(self, activations: Activations) -> Tensor | None:
        tokens = self.window.tokens() if self.alpha else None
        if tokens is None:
            return None
        placed = self._place(activations)
        if placed is None:
            return None
        steps, rows = tokens.of(activations)
        if rows is None:
            return self._moved(activations.values, steps, *placed)
        changed = activations.values.clone()
        changed[rows] = self._moved(changed[rows], steps, *placed)
        return changed

    def _place(self, activations: Activations) -> tuple[Tensor, Tensor] | None:
        """The columns of the table and of the chosen neurons for these activations; None if no neuron is chosen."""
        values, first = activations.values, activations.first
        key = (values.device, values.dtype, first)
        if key not in self._placed:
            columns = slice(first, first + values.shape[1])
            chosen = self.chosen[columns]
            table = self.table[:, columns].to(values.device, values.dtype)
            self._placed[key] = (table, chosen.to(values.device)) if chosen.any() else None
        return self._placed[key]

    def _moved(self, values: Tensor, steps: Tensor, table: Tensor, chosen: Tensor) -> Tensor:
        """The new values of these rows [tokens, neurons]."""
        if self.config.edit == "add":
            moved = values + table[steps]
        else:
            moved = torch.where(chosen, values + self.alpha * (table[steps] - values), values)
        if not self.config.keep_norm:
            return moved
        # The norm of the calibrated neurons alone: the others must not move.
        before, after = (_length(torch.where(chosen, part, 0).float()) for part in (values, moved))
        # A zero vector has no direction to scale.
        scaled = torch.where(after > 0, moved.float() * (before / after), moved.float())
        return torch.where(chosen, scaled.to(values.dtype), values)


def _length(values: Tensor) -> Tensor:
    """The Euclidean length of each row [rows, 1], without underflow of the squares of very small numbers."""
    largest = values.abs().amax(1, keepdim=True)
    length: Tensor = (values / largest.clamp_min(torch.finfo(values.dtype).tiny)).norm(dim=1, keepdim=True) * largest
    return length
