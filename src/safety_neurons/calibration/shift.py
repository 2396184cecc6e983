"""What calibration does to the activations of one site.

Which tokens of a forward pass are calibrated: worked out once a pass, not once a layer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from safety_neurons.calibration.config import CalibrationConfig
from safety_neurons.models.forward import PADDING, PromptPositions
from safety_neurons.models.neurons.hook_points import Activations


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
        knobs: CalibrationConfig,
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
