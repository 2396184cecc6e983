"""What calibration does to the activations of one site."""

import torch
from torch import Tensor

from safety_neurons.calibrate.knobs import Knobs
from safety_neurons.calibrate.window import TokenWindow
from safety_neurons.models.sites import Activations


class Shift:
    """Moves one site's neurons `indices` at the tokens of the window; everything else passes as the same bits.

    `away` and `target` are the mean activations [table rows, neurons] on the prompts of the class that is left and
    of the one that is aimed at, a row for each row of the window's table.
    """

    def __init__(
        self,
        window: TokenWindow,
        indices: Tensor,
        away: Tensor,
        target: Tensor,
        alpha: float,
        knobs: Knobs,
    ) -> None:
        self.window, self.alpha, self.knobs = window, alpha, knobs
        self.chosen = torch.zeros(target.shape[1], dtype=torch.bool)
        self.chosen[indices] = True
        if knobs.edit == "add":
            shift = alpha * (target - away)
            # Adding -0.0 leaves every number as it is; adding 0.0 would make 0.0 of -0.0.
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
        """The part of the table and of the chosen neurons that these activations are, on their device; None where no
        neuron is chosen."""
        values, first = activations.values, activations.first
        key = (values.device, values.dtype, first)
        if key not in self._placed:
            columns = slice(first, first + values.shape[1])
            chosen = self.chosen[columns]
            table = self.table[:, columns].to(values.device, values.dtype)
            self._placed[key] = (table, chosen.to(values.device)) if chosen.any() else None
        return self._placed[key]

    def _moved(self, values: Tensor, steps: Tensor, table: Tensor, chosen: Tensor) -> Tensor:
        """What these rows [tokens, neurons] become."""
        if self.knobs.edit == "add":
            moved = values + table[steps]
        else:
            moved = torch.where(chosen, values + self.alpha * (table[steps] - values), values)
        if not self.knobs.keep_norm:
            return moved
        # Of the calibrated neurons alone: the others must not move.
        before, after = (_length(torch.where(chosen, part, 0).float()) for part in (values, moved))
        # Where nothing is left there is no direction to be scaled.
        scaled = torch.where(after > 0, moved.float() * (before / after), moved.float())
        return torch.where(chosen, scaled.to(values.dtype), values)


def _length(values: Tensor) -> Tensor:
    """The Euclidean length of each row [rows, 1]; squares of very small numbers would be lost."""
    largest = values.abs().amax(1, keepdim=True)
    length: Tensor = (values / largest.clamp_min(torch.finfo(values.dtype).tiny)).norm(dim=1, keepdim=True) * largest
    return length
