"""Statistics of every neuron's activation in one streaming pass over prompts; activations are never stored."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from safety_neurons.core.distributed import add_over_processes, owns, sync_errors
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import PromptPositions, forward
from safety_neurons.models.generate import BATCH_SIZE, run_batches
from safety_neurons.models.neurons.hook_points import Activations, HookPoint, activation_hooks
from safety_neurons.models.shared_prefix import Prompts, read_ahead, share_prefix

# Number of rows converted to float64 at once. Fewer would fit into a CPU's cache, but each call synchronizes threads,
# which is slow if other programs use the cores too.
ROWS_AT_ONCE = 128
# The share of a model's neurons that are the top neurons of a prompt (CNA, arXiv 2605.12290).
TOP_SHARE = 0.001
EVERY_TOKEN = torch.iinfo(torch.long).max

T = TypeVar("T")


@dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of one prompt set; each list has one float32 tensor [neurons] per hook point.

    `count` is the number of tokens in a neuron's means: in a mixture of experts those routed to it. `top_share` is the
    share of prompts on which the neuron is among the top 0.1% of the model by |activation| at the last token.
    `by_position` holds the means [positions, neurons] at the last prompt positions, the very last in the last row; it
    is None if no positions were requested.
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
    """Row indices of activations: counted tokens, tokens near a prompt's end and their positions, and last tokens."""

    counted: Tensor
    near: Tensor
    position: Tensor
    last: Tensor
    prompt: Tensor


class Sums:
    """Running sums of one hook point, in float64 so that the order of the batches does not matter.

    Tokens are counted per block (expert), as the neurons of a block see the same tokens.
    """

    def __init__(self, point: HookPoint, positions: int, device: torch.device | None = None) -> None:
        # Apple's GPUs have no float64.
        exact = torch.float32 if device is not None and device.type == "mps" else torch.float64
        zeros = functools.partial(torch.zeros, dtype=exact, device=device)
        self.total, self.absolute, self.square, self.top = (zeros(point.width) for _ in range(4))
        self.count = zeros(point.blocks)
        self.by_position = zeros(positions, point.width)
        self.position_count = zeros(positions, point.blocks)

    def take(self, activations: Activations, rows: Rows) -> None:
        """Add the activations of these rows."""
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
        """Add the sums of another batch."""
        for name, value in vars(other).items():
            total = getattr(self, name)
            total.add_(value.to(total.device))

    def statistics(self, prompts: int) -> dict[str, Tensor]:
        """All means by name; 0 for neurons that saw no token."""
        size = len(self.total) // len(self.count)
        count = self.count.repeat_interleave(size)
        seen = count.clamp_min(1)
        mean = self.total / seen
        square = self.square / seen
        values = {
            "count": count,
            "mean": mean,
            "mean_absolute": self.absolute / seen,
            "mean_square": square,
            "variance": (square - mean.square()).clamp_min(0),
            "top_share": self.top / prompts,
            "by_position": self.by_position / self.position_count.clamp_min(1).repeat_interleave(size, 1),
        }
        return {name: value.float() for name, value in values.items()}


@dataclass(frozen=True)
class CapturedSums:
    """The sums of one prompt set, one entry per hook point; `measured` are those of the `MeasurePass`, if any."""

    prompts: int
    sums: tuple[Sums, ...]
    measured: tuple[Tensor, ...] = ()

    @property
    def measurement(self) -> list[Tensor]:
        """The means of what was measured: float32 [positions, neurons] per hook point."""
        return [(total / self.prompts).float() for total in self.measured]

    @classmethod
    def merged(cls, parts: Sequence[Self]) -> Self:
        """The activations' sums of several prompt sets of one model together."""
        merged = copy.deepcopy(parts[0].sums)
        for part in parts[1:]:
            for total, more in zip(merged, part.sums, strict=True):
                total.add(more)
        return cls(sum(part.prompts for part in parts), merged)

    def statistics(self) -> ActivationStatistics:
        """The means of the sums."""
        found = [total.statistics(self.prompts) for total in self.sums]
        by_name: dict[str, Any] = {name: [point[name] for point in found] for name in found[0]}
        if not len(self.sums[0].by_position):
            by_name["by_position"] = None
        return ActivationStatistics(self.prompts, **by_name)


class MeasurePass(NamedTuple):
    """Measures prompts in the pass that captures their activations.

    `run` runs a batch, with a graph if it needs one, and returns sums over its prompts: [positions, neurons] per hook
    point.
    """

    positions: int
    run: Callable[[Prompts], list[Tensor]]


class _TopNeurons:
    """Each prompt's top neurons among the hook points seen so far, without storing all its activations."""

    def __init__(self, prompts: int, limit: int, device: torch.device) -> None:
        self.values = torch.full((prompts, limit), -1.0, device=device)
        self.neurons = torch.zeros(prompts, limit, dtype=torch.long, device=device)

    def offer(self, prompts: Tensor, values: Tensor, first: int) -> None:
        """Add activations [rows, neurons] of the last tokens of `prompts` [rows], of the model's neurons `first` ..."""
        best_values, best_neurons = self.values.to(values.device), self.neurons.to(values.device)
        limit = best_values.shape[1]
        both = torch.cat([best_values[prompts], values.abs().float()], 1)
        best = both.topk(limit, 1, sorted=False)
        earlier = best_neurons[prompts].gather(1, best.indices.clamp_max(limit - 1))
        best_neurons[prompts] = torch.where(best.indices < limit, earlier, best.indices - limit + first)
        best_values[prompts] = best.values
        self.values, self.neurons = best_values, best_neurons

    def counts(self, neurons: int) -> Tensor:
        """For each neuron of the model, the number of prompts on which it is a top neuron."""
        return self.neurons[self.values >= 0].cpu().bincount(minlength=neurons)


class _TokenRoles:
    """The role of each token of the flattened batch in the statistics, computed once for all layers."""

    def __init__(self, mask: Tensor, tails: Tensor, positions: int) -> None:
        real = mask.bool()
        from_end = mask.flip(1).cumsum(1).flip(1)
        prompts = torch.arange(len(mask), device=mask.device)[:, None]
        self.counted = (real & (from_end <= tails)).flatten()
        # -1 for tokens at none of the positions, and for tokens that are not the last of a prompt.
        self.position = torch.where(real & (from_end <= positions), positions - from_end, -1).flatten()
        self.prompt = torch.where(real & (from_end == 1), prompts, -1).flatten()
        self.all = self._rows(self.counted, self.position, self.prompt)

    def rows(self, activations: Activations) -> Rows:
        """The roles of the rows of these activations."""
        device = activations.values.device
        if activations.tokens is None:
            return Rows(*(index.to(device) for index in self.all))
        per_token = (self.counted, self.position, self.prompt)
        return self._rows(*(value.to(device)[activations.tokens.to(device)] for value in per_token))

    @staticmethod
    def _rows(counted: Tensor, position: Tensor, prompt: Tensor) -> Rows:
        near, last = (position >= 0).nonzero().flatten(), (prompt >= 0).nonzero().flatten()
        return Rows(counted.nonzero().flatten(), near, position[near], last, prompt[last])


def counted_rows(activations: Activations, where: PromptPositions, tails: Tensor) -> Tensor:
    """Mask [rows] of the rows that belong to the last `tails` [prompts, 1] tokens of their prompts."""
    offsets = activations.of_tokens(where.offsets)
    wanted = activations.of_tokens(tails.expand(where.offsets.shape)).to(offsets.device)
    return ((offsets < 0) & (offsets >= -wanted)).to(activations.values.device)


def prompts_of_rows(activations: Activations, where: PromptPositions) -> Tensor:
    """The prompt in the batch of each row: int64 [rows]."""
    prompts = torch.arange(len(where.offsets))[:, None].expand(where.offsets.shape)
    return activations.of_tokens(prompts).to(activations.values.device)


def tails_of(tail: int | Sequence[int] | None, batch: Sequence[int]) -> Tensor:
    """Number of counted tokens at the end of each text of a batch: int64 [texts, 1]."""
    each = [EVERY_TOKEN if tail is None else tail if isinstance(tail, int) else tail[index] for index in batch]
    return torch.tensor(each)[:, None]


def stream(
    texts: Sequence[str], work: Callable[[list[int]], T], batch_size: int, advance: Advance = ignore
) -> Iterator[T]:
    """Yield the results of `work` for this process' share of the batches; the processes share their errors."""
    with sync_errors():
        yield from run_batches(texts, batch_size, work, skip=lambda number, _: not owns(number), advance=advance)


def capture_sums(
    model: ChatModel,
    texts: Sequence[str],
    *,
    tail: int | Sequence[int] | None = 1,
    positions: int = 0,
    measure: MeasurePass | None = None,
    batch_size: int = BATCH_SIZE,
    advance: Advance = ignore,
) -> CapturedSums:
    """Run rendered texts through the model once and sum up the activations of all neurons.

    Several processes (see `core.distributed`) each run a share of the batches, and all get the same sums.

    Args:
        tail: number of tokens at the end of each text that count (one number, or one per text); None counts all.
        positions: number of positions at the end of the prompt with separate means.
        measure: runs each batch, instead of a plain pass. It gets the counted tokens and positions; those before are
            read already, without a graph.
    """
    widths = [point.width for point in model.hook_points]
    neurons = sum(widths)
    sums = [Sums(point, positions) for point in model.hook_points]

    def run(batch: list[int]) -> tuple[dict[int, Sums], list[Tensor]]:
        inputs = model.encode([texts[index] for index in batch])
        tails = tails_of(tail, batch).to(model.device)
        # Sums of this batch alone, so that a batch that runs out of memory leaves no trace.
        part: dict[int, Sums] = {}

        def gather(activations: Activations, number: int, first: int) -> None:
            if number not in part:
                part[number] = Sums(model.hook_points[number], positions, activations.values.device)
            rows = tokens.rows(activations)
            with torch.no_grad():
                part[number].take(activations, rows)
                top.offer(rows.prompt, activations.values[rows.last], first + activations.first)

        own = max(positions, int(tails.max()))
        # Tensors of inference mode cannot be part of a graph.
        with torch.inference_mode(measure is None), torch.no_grad():
            prompts = (share_prefix if measure is None else read_ahead)(model.model, inputs, own=own)
            mask = prompts.unread
            tokens = _TokenRoles(mask, tails, positions)
            top = _TopNeurons(len(batch), max(1, round(TOP_SHARE * neurons)), mask.device)
            hooks = [
                (point, functools.partial(gather, number=number, first=sum(widths[:number])))
                for number, point in enumerate(model.hook_points)
            ]
            # Without the head, as no statistic needs logits.
            with activation_hooks(hooks):
                if measure is None:
                    forward(model.model.base_model, prompts.inputs, cache=prompts.cache)
                    measured: list[Tensor] = []
                else:
                    measured = measure.run(prompts)
            counts = top.counts(neurons).split(widths)
            for number, added in part.items():
                added.top += counts[number].to(added.top.device)
        return part, measured

    rows = 0 if measure is None else measure.positions
    totals = [torch.zeros(rows, width, dtype=torch.float64) for width in widths if rows]
    for part, measured in stream(texts, run, batch_size, advance):
        for number, added in part.items():
            sums[number].add(added)
        for total, more in zip(totals, measured, strict=True):
            total += more
    for each in sums:
        add_over_processes(vars(each).values())
    add_over_processes(totals)
    return CapturedSums(len(texts), tuple(sums), tuple(totals))
