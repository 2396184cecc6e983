"""The residual stream's means at the prompt's last token: what the logit lens reads, the reference for the neurons."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import BATCH_SIZE, batches_by_length, halve_when_full
from safety_neurons.models.trace import decoder_layers
from safety_neurons.progress import Advance, ignore


@dataclass(frozen=True)
class ResidualMeans:
    """Mean output of every decoder layer at the prompt's last token: float32 [layers, hidden] each."""

    harmful: Tensor
    benign: Tensor


def mean_residuals(
    model: ChatModel,
    harmful: Sequence[str],
    benign: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    advance: Advance = ignore,
) -> ResidualMeans:
    """Run both sets of requests through the model once and average each layer's output at the last token.

    Args:
        harmful, benign: requests, as a user would type them.
        advance: told how many prompts were read.
    """
    return ResidualMeans(*(_means(model, prompts, batch_size, advance) for prompts in (harmful, benign)))


def _means(model: ChatModel, prompts: Sequence[str], batch_size: int, advance: Advance) -> Tensor:
    texts = [model.render(prompt) for prompt in prompts]

    def run(batch: list[int]) -> Tensor:
        seen: list[Tensor] = []

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            stream = output if isinstance(output, Tensor) else output[0]
            # Padding is on the left, so the last token of every prompt is the last.
            seen.append(stream[:, -1].float().cpu().double().sum(0))

        with contextlib.ExitStack() as stack, torch.inference_mode():
            for layer in decoder_layers(model.model):
                stack.callback(layer.register_forward_hook(note).remove)
            forward(model.model, model.encode([texts[index] for index in batch]))
        return torch.stack(seen)

    parts: list[Tensor] = []
    for batch in batches_by_length(texts, batch_size):
        parts += halve_when_full(run, batch)
        advance(len(batch))
    return (torch.stack(parts).sum(0) / len(texts)).float()
