"""One streaming pass over prompts: statistics of every neuron's activation, never the activations themselves."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from safety_neurons.find.processes import add_over_processes, all_or_none, is_mine
from safety_neurons.find.sums import ActivationStatistics, CapturedSums, Rows, Sums
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import BATCH_SIZE, batches_by_length, halve_when_full
from safety_neurons.models.positions import PromptPositions
from safety_neurons.models.sites import Activations, activation_hooks
from safety_neurons.progress import Advance, ignore

# A neuron among this share of all neurons on a prompt counts as one of that prompt's top neurons (CNA, 2605.12290).
TOP_SHARE = 0.001
EVERY_TOKEN = torch.iinfo(torch.long).max

T = TypeVar("T")


class _TopNeurons:
    """Each prompt's top neurons among the sites seen so far: never all activations of a prompt at once."""

    def __init__(self, prompts: int, limit: int, device: torch.device) -> None:
        self.values = torch.full((prompts, limit), -1.0, device=device)
        self.neurons = torch.zeros(prompts, limit, dtype=torch.long, device=device)

    def offer(self, prompts: Tensor, values: Tensor, first: int) -> None:
        """Activations [rows, neurons] of the last tokens of `prompts` [rows]; `first` counts over the whole model."""
        known, names = self.values.to(values.device), self.neurons.to(values.device)
        limit = known.shape[1]
        both = torch.cat([known[prompts], values.abs().float()], 1)
        best = both.topk(limit, 1, sorted=False)
        earlier = names[prompts].gather(1, best.indices.clamp_max(limit - 1))
        names[prompts] = torch.where(best.indices < limit, earlier, best.indices - limit + first)
        known[prompts] = best.values
        self.values, self.neurons = known, names

    def counts(self, neurons: int) -> Tensor:
        """For how many prompts each neuron of the model is a top neuron."""
        return self.neurons[self.values >= 0].cpu().bincount(minlength=neurons)


class _Tokens:
    """What each token of the flattened batch is for the statistics. The same for all layers, so found out once."""

    def __init__(self, mask: Tensor, tails: Tensor, positions: int) -> None:
        real = mask.bool()
        from_end = mask.flip(1).cumsum(1).flip(1)
        prompts = torch.arange(len(mask), device=mask.device)[:, None]
        self.counted = (real & (from_end <= tails)).flatten()
        # -1 for tokens that are at none of the positions, and for those that are not the last of a prompt.
        self.position = torch.where(real & (from_end <= positions), positions - from_end, -1).flatten()
        self.prompt = torch.where(real & (from_end == 1), prompts, -1).flatten()
        self.all = self._rows(self.counted, self.position, self.prompt)

    def rows(self, activations: Activations) -> Rows:
        """Which rows of these activations are what."""
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
    widths = [site.width for site in model.sites]
    neurons = sum(widths)
    sums = [Sums(site, positions) for site in model.sites]

    def run(batch: list[int]) -> dict[int, Sums]:
        inputs = model.encode([texts[index] for index in batch])
        mask = inputs["attention_mask"]
        assert isinstance(mask, Tensor)
        # Sums of this batch alone: if memory runs out on the way, nothing of it has been counted yet.
        part: dict[int, Sums] = {}

        def gather(activations: Activations, number: int, first: int) -> None:
            if number not in part:
                part[number] = Sums(model.sites[number], positions, activations.values.device)
            rows = tokens.rows(activations)
            part[number].take(activations, rows)
            top.offer(rows.prompt, activations.values[rows.last], first + activations.first)

        with torch.inference_mode():
            tokens = _Tokens(mask, tails_of(tail, batch).to(mask.device), positions)
            top = _TopNeurons(len(batch), max(1, round(TOP_SHARE * neurons)), mask.device)
            hooks = [
                (site, functools.partial(gather, number=number, first=sum(widths[:number])))
                for number, site in enumerate(model.sites)
            ]
            # Without the head: no statistic looks at logits.
            with activation_hooks(hooks):
                forward(model.model.base_model, inputs)
            counts = top.counts(neurons).split(widths)
            for number, site_sums in part.items():
                site_sums.top += counts[number].to(site_sums.top.device)
        return part

    for part in stream(texts, run, batch_size, advance):
        for number, more in part.items():
            sums[number].add(more)
    for total in sums:
        add_over_processes(vars(total).values())
    return CapturedSums(len(texts), tuple(sums))
