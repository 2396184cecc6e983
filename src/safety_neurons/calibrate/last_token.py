"""The activations of chosen neurons at each prompt's last token: what a guard decides by."""

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import batches_by_length, halve_when_full
from safety_neurons.models.positions import PromptPositions, follow_positions
from safety_neurons.models.sites import ActivationHook, Activations, NeuronSite, activation_hooks
from safety_neurons.progress import Advance, ignore


class LastTokens:
    """Gathers activations while a pass reads prompts: `values` is float32 [prompts, chosen neurons], site after site.

    A routed expert's neurons count as zero for a prompt whose last token does not reach the expert.
    """

    def __init__(self, where: PromptPositions, chosen: Sequence[Tensor]) -> None:
        self.where, self.chosen = where, chosen
        starts = [0]
        for indices in chosen:
            starts.append(starts[-1] + len(indices))
        self.starts, self.size = starts, starts[-1]
        self.values = torch.empty(0, self.size)
        self._pass: Tensor | None = None
        self._prompts: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def hooks(self, sites: Sequence[NeuronSite]) -> Iterator[tuple[NeuronSite, ActivationHook]]:
        """A hook for every site that holds chosen neurons."""
        for number, (site, indices) in enumerate(zip(sites, self.chosen, strict=True)):
            if len(indices):
                yield site, functools.partial(self.take, number=number)

    def take(self, activations: Activations, number: int) -> None:
        """Keep what these activations hold of the chosen neurons of a site."""
        if self.where.generated is not None:
            return
        self._begin(activations.values.device)
        values, first = activations.values, activations.first
        indices = self.chosen[number]
        mine = (indices >= first) & (indices < first + values.shape[1])
        if activations.tokens is None:
            prompts, rows = self._prompts
        else:
            last = activations.of_tokens(self._per_token()).to(values.device)
            rows = (last >= 0).nonzero().flatten()
            prompts = last[rows]
        if not len(rows) or not mine.any():
            return
        columns = (indices[mine] - first).to(values.device)
        places = (self.starts[number] + mine.nonzero().flatten()).to(values.device)
        found = values[rows][:, columns].float()
        self.values[prompts[:, None].to(self.values.device), places[None].to(self.values.device)] = found.to(
            self.values.device
        )

    def _begin(self, device: torch.device) -> None:
        """A pass that has not been seen begins with zeros."""
        if self._pass is not self.where.offsets:
            self._pass = self.where.offsets
            self.values = torch.zeros(len(self.where.offsets), self.size, device=device)
            last = self._per_token().flatten().to(device)
            rows = (last >= 0).nonzero().flatten()
            self._prompts = last[rows], rows

    def _per_token(self) -> Tensor:
        """The prompt whose last token each token is, or -1: [prompts, tokens]."""
        offsets = self.where.offsets
        prompts = torch.arange(len(offsets), device=offsets.device)[:, None]
        return torch.where(offsets == -1, prompts, -1)


def last_token_activations(
    model: ChatModel,
    chosen: Sequence[Tensor],
    texts: Sequence[str],
    batch_size: int,
    advance: Advance = ignore,
) -> Tensor:
    """The chosen neurons' activations at the last token of rendered texts: float32 [texts, chosen neurons]."""
    found = torch.zeros(len(texts), sum(map(len, chosen)))
    if not found.shape[1]:
        return found

    def run(batch: list[int]) -> None:
        with torch.inference_mode(), follow_positions(model.model) as where:
            gathered = LastTokens(where, chosen)
            with activation_hooks(gathered.hooks(model.sites)):
                # Without the head: no neuron looks at logits.
                forward(model.model.base_model, model.encode([texts[index] for index in batch]))
            found[batch] = gathered.values.cpu()

    for batch in batches_by_length(texts, batch_size):
        halve_when_full(run, batch)
        advance(len(batch))
    return found
