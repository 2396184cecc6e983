"""Reads vectors of the residual stream in words through the final norm and the unembedding (the logit lens)."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import BATCH_SIZE, run_batches
from safety_neurons.models.neurons.hook_points import has_plain_weight, is_matrix
from safety_neurons.models.neurons.trace import decoder_layers
from safety_neurons.models.shared_prefix import share_prefix

# Number of writes that are projected on the whole vocabulary at once.
ROWS = 128


class Words(NamedTuple):
    """Tokens and their logits, strongest first."""

    words: tuple[str, ...]
    logits: tuple[float, ...]


@dataclass(frozen=True)
class Readout:
    """Turns writes into logits; `norm` is the module between the last layer and the unembedding."""

    model: ChatModel
    norm: nn.Module
    unembedding: nn.Module

    @classmethod
    def of(cls, model: ChatModel) -> "Readout":
        """Find the final norm and the unembedding of a model.

        Raises:
            SafetyNeuronsError: the model has no unembedding, or its final norm was not found.
        """
        unembedding = model.model.get_output_embeddings()
        if unembedding is None:
            raise SafetyNeuronsError(f"{model.name} has no unembedding, so its neurons cannot be read in words.")
        return cls(model, final_norm(model), unembedding)

    @torch.no_grad()
    def logits(self, writes: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of writes [rows, hidden]: float32 [rows, vocabulary], or [rows, tokens] for chosen tokens.

        Writes are scaled to a mean square of 1 first, so that neither their length nor the norm's epsilon matters.
        """
        length = writes.square().mean(-1, keepdim=True).sqrt()
        scaled = writes / length.clamp_min(torch.finfo(torch.float32).tiny)
        weight = self.unembedding.weight
        assert isinstance(weight, Tensor)
        device = self.model.device if weight.is_meta else weight.device
        normed = self.norm(scaled.to(device, self.model.model.dtype))
        if tokens is None or not is_matrix(self.unembedding) or not has_plain_weight(self.unembedding):
            logits: Tensor = self.unembedding(normed).float()
            return logits if tokens is None else logits[:, tokens.to(logits.device)]
        tokens = tokens.to(device)
        bias = self.unembedding.bias
        assert bias is None or isinstance(bias, Tensor)
        logits = normed.float() @ weight[tokens].float().T
        return logits if bias is None else logits + bias[tokens].float()

    def words(self, writes: Tensor, top: int) -> list[tuple[Words, Words]]:
        """The `top` tokens that each write [rows, hidden] promotes and suppresses."""
        vocabulary = len(self.model.tokenizer)
        found = []
        for part in writes.split(ROWS):
            # Rows of the unembedding past the tokenizer's last token are padding.
            for row in self.logits(part)[:, :vocabulary]:
                best, worst = (row.topk(min(top, len(row)), largest=largest) for largest in (True, False))
                found.append((self._words(best), self._words(worst)))
        return found

    def _words(self, best: "torch.return_types.topk") -> Words:
        words = tuple(self.model.tokenizer.decode([token]) for token in best.indices.tolist())
        return Words(words, tuple(best.values.tolist()))


def readable(token: str) -> str:
    """A token for display, with control characters escaped."""
    stripped = token.strip() or token
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in stripped)


def final_norm(model: ChatModel) -> nn.Module:
    """The module whose output is the input of the unembedding.

    Raises:
        SafetyNeuronsError: there is no such module.
    """
    inside_layers = {module for layer in decoder_layers(model.model) for module in layer.modules()}
    returned: list[tuple[nn.Module, Tensor]] = []
    read: list[Tensor] = []

    def note(module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor):
            returned.append((module, output))

    with contextlib.ExitStack() as stack:
        for module in model.model.modules():
            if module not in inside_layers and not list(module.children()):
                stack.callback(module.register_forward_hook(note).remove)
        unembedding = model.model.get_output_embeddings()
        handle = unembedding.register_forward_pre_hook(lambda _module, args: read.append(args[0]))
        stack.callback(handle.remove)
        with torch.no_grad():
            forward(model.model, model.encode([model.render("Hello")]), last_logits=0)
    for module, output in reversed(returned):
        if module is not unembedding and output.shape == read[0].shape and torch.equal(output, read[0]):
            return module
    raise SafetyNeuronsError(f"The final norm of {model.name} was not found, so its neurons cannot be read in words.")


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
        harmful, benign: requests as a user would type them.
        advance: called with the number of prompts of each batch.
    """
    return ResidualMeans(*(_means(model, prompts, batch_size, advance) for prompts in (harmful, benign)))


def _means(model: ChatModel, prompts: Sequence[str], batch_size: int, advance: Advance) -> Tensor:
    texts = [model.render(prompt) for prompt in prompts]

    def run(batch: list[int]) -> Tensor:
        seen: list[Tensor] = []

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            stream = output if isinstance(output, Tensor) else output[0]
            # Left padding puts the last token of every prompt last.
            seen.append(stream[:, -1].float().cpu().double().sum(0))

        with contextlib.ExitStack() as stack, torch.inference_mode():
            prompts = share_prefix(model.model, model.encode([texts[index] for index in batch]))
            for layer in decoder_layers(model.model):
                stack.callback(layer.register_forward_hook(note).remove)
            forward(model.model, prompts.inputs, cache=prompts.cache)
        return torch.stack(seen)

    parts = list(run_batches(texts, batch_size, run, advance=advance))
    return (torch.stack(parts).sum(0) / len(texts)).float()
