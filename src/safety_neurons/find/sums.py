"""Sums over tokens, site by site, and the statistics of activations that come of them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from safety_neurons.models.sites import Activations, NeuronSite

# How many rows are widened to float64 at once. Fewer would stay in a CPU's cache, but each call makes its threads meet,
# which is slow where other programs use the cores too.
ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of one prompt set; each list has one float32 tensor [neurons] per site.

    `count` is over how many tokens the neuron's means go: in a mixture of experts only those that were routed to it.
    `top_share` is the share of prompts on which the neuron is among the top 0.1% of the model by |activation| at the
    last token. `by_position` holds [positions, neurons]: the mean at the last prompt positions, the very last in the
    last row; it is None where the prompts were not asked for positions.
    """

    prompts: int
    count: list[Tensor]
    mean: list[Tensor]
    mean_absolute: list[Tensor]
    mean_square: list[Tensor]
    variance: list[Tensor]
    top_share: list[Tensor]
    by_position: list[Tensor] | None


class Rows(NamedTuple):
    """Rows of activations: those that count, those near a prompt's end and where, and prompts' last tokens."""

    counted: Tensor
    near: Tensor
    position: Tensor
    last: Tensor
    prompt: Tensor


class Sums:
    """Running sums of one site, in float64 so that the order of the batches does not matter.

    Neurons of one block (one expert) see the same tokens, so tokens are counted per block.
    """

    def __init__(self, site: NeuronSite, positions: int, device: torch.device | None = None) -> None:
        # Apple's GPUs know no float64.
        exact = torch.float32 if device is not None and device.type == "mps" else torch.float64
        self.total = torch.zeros(site.width, dtype=exact, device=device)
        self.absolute = torch.zeros(site.width, dtype=exact, device=device)
        self.square = torch.zeros(site.width, dtype=exact, device=device)
        self.top = torch.zeros(site.width, dtype=exact, device=device)
        self.count = torch.zeros(site.blocks, dtype=exact, device=device)
        self.by_position = torch.zeros(positions, site.width, dtype=exact, device=device)
        self.position_count = torch.zeros(positions, site.blocks, dtype=exact, device=device)

    def take(self, activations: Activations, rows: Rows) -> None:
        """Count what the sites' neurons `first` ... are on these rows."""
        values, first = activations.values, activations.first
        columns, block = slice(first, first + values.shape[1]), first // values.shape[1]
        exact = self.total.dtype
        self.count[block] += len(rows.counted)
        for part in rows.counted.split(ROWS_AT_ONCE):
            chosen = values.index_select(0, part).to(exact)
            self.total[columns] += chosen.sum(0)
            self.absolute[columns] += chosen.abs_().sum(0)
            self.square[columns] += chosen.square_().sum(0)
        if len(self.by_position):
            self.by_position[:, columns].index_add_(0, rows.position, values[rows.near].to(exact))
            self.position_count[:, block] += rows.position.bincount(minlength=len(self.by_position))

    def add(self, other: "Sums") -> None:
        """Take in the sums of another batch."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            mine.add_(value.to(mine.device))

    def statistics(self, prompts: int) -> dict[str, Tensor]:
        """Every mean, with zeros for neurons that saw no token."""
        size = len(self.total) // len(self.count)
        count = self.count.repeat_interleave(size)
        seen = count.clamp_min(1)
        mean = self.total / seen
        square = self.square / seen
        found = {
            "count": count,
            "mean": mean,
            "mean_absolute": self.absolute / seen,
            "mean_square": square,
            "variance": (square - mean.square()).clamp_min(0),
            "top_share": self.top / prompts,
            "by_position": self.by_position / self.position_count.clamp_min(1).repeat_interleave(size, 1),
        }
        return {name: value.float() for name, value in found.items()}


@dataclass(frozen=True)
class CapturedSums:
    """The sums of one prompt set, one entry per site."""

    prompts: int
    sites: tuple[Sums, ...]

    @classmethod
    def merged(cls, parts: Sequence[Self]) -> Self:
        """The sums of several prompt sets of one model together, as if they had been one."""
        sites = tuple(copy.deepcopy(site) for site in parts[0].sites)
        for part in parts[1:]:
            for total, more in zip(sites, part.sites, strict=True):
                total.add(more)
        return cls(sum(part.prompts for part in parts), sites)

    def statistics(self) -> ActivationStatistics:
        found = [total.statistics(self.prompts) for total in self.sites]
        by_name: dict[str, Any] = {name: [site[name] for site in found] for name in found[0]}
        if not len(self.sites[0].by_position):
            by_name["by_position"] = None
        return ActivationStatistics(self.prompts, **by_name)
