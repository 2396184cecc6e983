"""One streaming pass over prompts: statistics of every neuron's activation, never the activations themselves."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from safety_neurons.find.processes import add_over_processes, all_or_none, is_mine
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import BATCH_SIZE, batches_by_length, halve_when_full
from safety_neurons.models.positions import PromptPositions, follow_positions
from safety_neurons.models.sites import Activations, NeuronSite, activation_hooks
from safety_neurons.progress import Advance, ignore

# A neuron among this share of all neurons on a prompt counts as one of that prompt's top neurons (CNA, 2605.12290).
TOP_SHARE = 0.001
EVERY_TOKEN = torch.iinfo(torch.long).max

T = TypeVar("T")


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


class Sums:
    """Running sums of one site, in float64 so that the order of the batches does not matter.

    Neurons of one block (one expert) see the same tokens, so tokens are counted per block.
    """

    def __init__(self, site: NeuronSite, positions: int) -> None:
        self.total = torch.zeros(site.width, dtype=torch.float64)
        self.absolute = torch.zeros(site.width, dtype=torch.float64)
        self.square = torch.zeros(site.width, dtype=torch.float64)
        self.top = torch.zeros(site.width, dtype=torch.float64)
        self.count = torch.zeros(site.blocks, dtype=torch.float64)
        self.by_position = torch.zeros(positions, site.width, dtype=torch.float64)
        self.position_count = torch.zeros(positions, site.blocks, dtype=torch.float64)

    def add(self, other: "Sums") -> None:
        """Take in the sums of another batch."""
        for name, value in vars(other).items():
            getattr(self, name).add_(value)

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


class _TopNeurons:
    """The candidates for each prompt's top neurons, site by site: never all activations of a prompt at once."""

    def __init__(self, sites: Sequence[NeuronSite]) -> None:
        self.limit = max(1, round(TOP_SHARE * sum(site.width for site in sites)))
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def offer(self, prompts: Tensor, values: Tensor, first: int) -> None:
        """Activations [rows, neurons] of prompts' last tokens; `first` counts over the whole model."""
        best = values.abs().topk(min(self.limit, values.shape[1]), 1)
        prompts = prompts[:, None].expand_as(best.indices)
        self.found.append((prompts.flatten(), best.values.float().flatten(), (best.indices + first).flatten()))

    def counts(self, neurons: int) -> Tensor:
        """For how many prompts each neuron of the model is a top neuron."""
        prompts, values, indices = (
            torch.cat([part.cpu() for part in parts]) for parts in zip(*self.found, strict=True)
        )
        counts = torch.zeros(neurons, dtype=torch.float64)
        for prompt in prompts.unique():
            mine = (prompts == prompt).nonzero().flatten()
            counts[indices[mine[values[mine].topk(min(self.limit, len(mine))).indices]]] += 1
        return counts


class _Gather:
    """The hook of one site: reduces a pass' activations to sums before the next layer runs."""

    def __init__(self, where: PromptPositions, tails: Tensor, sums: Sums, top: _TopNeurons, first: int) -> None:
        self.where, self.tails, self.sums, self.top, self.first = where, tails, sums, top, first

    def __call__(self, activations: Activations) -> None:
        values, sums = activations.values, self.sums
        offsets = activations.of_tokens(self.where.offsets).to(values.device)
        counted = counted_rows(activations, self.where, self.tails)
        columns = slice(activations.first, activations.first + values.shape[1])
        block = activations.first // values.shape[1]
        # Apple's GPUs know no float64.
        exact = torch.float32 if values.device.type == "mps" else torch.float64
        chosen = values[counted]
        sums.total[columns] += chosen.sum(0, dtype=exact).cpu()
        sums.absolute[columns] += torch.linalg.vector_norm(chosen, 1, 0, dtype=exact).cpu()
        sums.square[columns] += torch.linalg.vector_norm(chosen, 2, 0, dtype=exact).square().cpu()
        sums.count[block] += len(chosen)
        positions = len(sums.by_position)
        if positions:
            near = (offsets >= -positions) & (offsets < 0)
            rows = (offsets[near] + positions).cpu()
            sums.by_position[:, columns].index_add_(0, rows, values[near].to(exact).cpu().double())
            sums.position_count[:, block] += torch.bincount(rows, minlength=positions)
        last = offsets == -1
        prompts = prompts_of_rows(activations, self.where)
        self.top.offer(prompts[last], values[last], self.first + activations.first)


def counted_rows(activations: Activations, where: PromptPositions, tails: Tensor) -> Tensor:
    """Which rows belong to the last `tails` [prompts, 1] tokens of their prompts: bool [rows]."""
    offsets = activations.of_tokens(where.offsets)
    wanted = activations.of_tokens(tails.expand(where.offsets.shape)).to(offsets.device)
    return ((offsets < 0) & (offsets >= -wanted)).to(activations.values.device)


def prompts_of_rows(activations: Activations, where: PromptPositions) -> Tensor:
    """To which prompt of the batch each row belongs: int64 [rows]."""
    prompts = torch.arange(len(where.offsets))[:, None].expand(where.offsets.shape)
    return activations.of_tokens(prompts).to(activations.values.device)


def tails_of(tail: int | Sequence[int] | None, batch: Sequence[int]) -> Tensor:
    """How many tokens count at the end of each text of a batch: int64 [texts, 1]."""
    each = [EVERY_TOKEN if tail is None else tail if isinstance(tail, int) else tail[index] for index in batch]
    return torch.tensor(each)[:, None]


def stream(
    texts: Sequence[str], work: Callable[[list[int]], T], batch_size: int, advance: Advance = ignore
) -> Iterator[T]:
    """What `work` makes of this process' share of the batches (of indices), halved where memory runs out."""
    with all_or_none():
        for number, batch in enumerate(batches_by_length(texts, batch_size)):
            if is_mine(number):
                yield from halve_when_full(work, batch)
            advance(len(batch))


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

    Where several processes run together (see `find.processes`), each takes a share of the batches and all get the
    same result.

    Args:
        tail: how many tokens at the end of each text count (one number, or one per text); None counts all.
        positions: for how many positions at the prompt's end to keep separate means.
    """
    return capture_sums(
        model, texts, tail=tail, positions=positions, batch_size=batch_size, advance=advance
    ).statistics()


def capture_sums(
    model: ChatModel,
    texts: Sequence[str],
    *,
    tail: int | Sequence[int] | None = 1,
    positions: int = 0,
    batch_size: int = BATCH_SIZE,
    advance: Advance = ignore,
) -> CapturedSums:
    """The sums from which `capture` makes its statistics; those of several sets of texts add up."""
    sums = [Sums(site, positions) for site in model.sites]
    widths = [site.width for site in model.sites]

    def run(batch: list[int]) -> list[Sums]:
        inputs = model.encode([texts[index] for index in batch])
        tails = tails_of(tail, batch)
        # Sums of this batch alone: if memory runs out on the way, nothing of it has been counted yet.
        part = [Sums(site, positions) for site in model.sites]
        top = _TopNeurons(model.sites)
        with torch.inference_mode(), follow_positions(model.model) as where:
            hooks = [
                (site, _Gather(where, tails, site_sums, top, sum(widths[:number])))
                for number, (site, site_sums) in enumerate(zip(model.sites, part, strict=True))
            ]
            with activation_hooks(hooks):
                forward(model.model, inputs)
            counts = top.counts(sum(widths)).split(widths)
        for site_sums, count in zip(part, counts, strict=True):
            site_sums.top += count
        return part

    for part in stream(texts, run, batch_size, advance):
        for total, more in zip(sums, part, strict=True):
            total.add(more)
    for total in sums:
        add_over_processes(vars(total).values())
    return CapturedSums(len(texts), tuple(sums))
