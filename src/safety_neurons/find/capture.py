"""One streaming pass over prompts: statistics of every neuron's activation, never the activations themselves."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import BATCH_SIZE, batches_by_length, halve_when_full
from safety_neurons.models.positions import activation_hooks, follow_positions
from safety_neurons.progress import Advance, ignore

# A neuron among this share of all neurons on a prompt counts as one of that prompt's top neurons (CNA, 2605.12290).
TOP_SHARE = 0.001


@dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of one prompt set; each list has one float32 tensor [neurons] per layer.

    `top_share` is the share of prompts on which the neuron is among the top 0.1% of the model by |activation| at the
    last token. `by_position` holds [positions, neurons]: the mean at the last prompt positions, the very last in the
    last row; it is None where the prompts were not asked for positions.
    """

    prompts: int
    tokens: int
    mean: list[Tensor]
    mean_absolute: list[Tensor]
    mean_square: list[Tensor]
    top_share: list[Tensor]
    by_position: list[Tensor] | None


class _Sums:
    """Running sums of one layer, in float64 so that the order of the batches does not matter."""

    def __init__(self, width: int, positions: int) -> None:
        self.total = torch.zeros(width, dtype=torch.float64)
        self.absolute = torch.zeros(width, dtype=torch.float64)
        self.square = torch.zeros(width, dtype=torch.float64)
        self.top = torch.zeros(width, dtype=torch.float64)
        self.by_position = torch.zeros(positions, width, dtype=torch.float64)
        self.position_count = torch.zeros(positions, 1, dtype=torch.float64)

    def add(self, other: "_Sums") -> None:
        """Take in the sums of another batch."""
        for name, value in vars(other).items():
            getattr(self, name).add_(value)


def capture(
    model: ChatModel,
    texts: Sequence[str],
    *,
    tail: int | Sequence[int] | None = 1,
    positions: int = 0,
    batch_size: int = BATCH_SIZE,
    advance: Advance = ignore,
) -> ActivationStatistics:
    """Run rendered texts through the model once and gather the statistics of all neurons.

    Args:
        tail: how many tokens at the end of each text count (one number, or one per text); None counts all.
        positions: for how many positions at the prompt's end to keep separate means.
    """
    sums = [_Sums(site.width, positions) for site in model.sites]
    tokens = 0

    def run(batch: list[int]) -> tuple[list[_Sums], int]:
        inputs = model.encode([texts[index] for index in batch])
        seen: dict[int, Tensor] = {}
        hooks = {}
        for layer, site in enumerate(model.sites):

            def hook(_module: torch.nn.Module, args: tuple[Tensor, ...], layer: int = layer) -> None:
                seen[layer] = args[0].detach()

            hooks[site.write] = hook
        with torch.inference_mode(), contextlib.ExitStack() as stack:
            where = stack.enter_context(follow_positions(model.model))
            stack.enter_context(activation_hooks(hooks))
            forward(model.model, inputs)
            offsets = where.offsets
        # Sums of this batch alone: if memory runs out on the way, nothing of it has been counted yet.
        part = [_Sums(site.width, positions) for site in model.sites]
        return part, _add(part, seen, offsets, [_tail(tail, index) for index in batch])

    for batch in batches_by_length(texts, batch_size):
        for part, counted in halve_when_full(run, batch):
            tokens += counted
            for total, more in zip(sums, part, strict=True):
                total.add(more)
        advance(len(batch))

    def average(values: Tensor, count: float | Tensor) -> Tensor:
        return (values / count).float()

    return ActivationStatistics(
        prompts=len(texts),
        tokens=tokens,
        mean=[average(layer.total, tokens) for layer in sums],
        mean_absolute=[average(layer.absolute, tokens) for layer in sums],
        mean_square=[average(layer.square, tokens) for layer in sums],
        top_share=[average(layer.top, len(texts)) for layer in sums],
        by_position=[average(layer.by_position, layer.position_count.clamp_min(1)) for layer in sums]
        if positions
        else None,
    )


def _tail(tail: int | Sequence[int] | None, index: int) -> int:
    if tail is None:
        return torch.iinfo(torch.long).max
    return tail if isinstance(tail, int) else tail[index]


def _add(sums: list[_Sums], seen: dict[int, Tensor], offsets: Tensor, tails: list[int]) -> int:
    """Add one batch; returns how many tokens counted."""
    offsets = offsets.cpu()
    counted = (offsets < 0) & (-offsets <= torch.tensor(tails)[:, None]) & (offsets > torch.iinfo(torch.long).min)
    last = []
    for layer, layer_sums in enumerate(sums):
        # Some models flatten batch and tokens before the MLP.
        activations = seen[layer].reshape(*offsets.shape, -1).float().cpu()
        chosen = activations[counted].double()
        layer_sums.total += chosen.sum(0)
        layer_sums.absolute += chosen.abs().sum(0)
        layer_sums.square += chosen.square().sum(0)
        positions = layer_sums.by_position.shape[0]
        for position in range(positions):
            at = activations[offsets == position - positions].double()
            layer_sums.by_position[position] += at.sum(0)
            layer_sums.position_count[position] += len(at)
        last.append(activations[offsets == -1].abs())
    everything = torch.cat(last, 1)
    top = everything.topk(max(1, round(TOP_SHARE * everything.shape[1])), 1).indices
    counts = torch.bincount(top.flatten(), minlength=everything.shape[1]).double()
    for layer_sums, count in zip(sums, counts.split([len(layer.top) for layer in sums]), strict=True):
        layer_sums.top += count
    return int(counted.sum())
