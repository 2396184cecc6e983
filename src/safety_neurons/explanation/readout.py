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
ROWS = 32


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
            raise SafetyNeuronsError(
                f"{model.name} has no unembedding, so its neurons cannot be read in words. Choose another model."
            )
        return cls(model, final_norm(model), unembedding)

    @torch.no_grad()
    def normed(self, writes: Tensor) -> Tensor:
        """What the unembedding reads of writes [rows, hidden]: the final norm's output, in the model's precision.

        Writes are scaled to a mean square of 1 first, so that neither their length nor the norm's epsilon matters.
        """
        length = writes.square().mean(-1, keepdim=True).sqrt()
        scaled = writes / length.clamp_min(torch.finfo(torch.float32).tiny)
        weight = self.unembedding.weight
        assert isinstance(weight, Tensor)
        device = self.model.device if weight.is_meta else weight.device
        normed: Tensor = self.norm(scaled.to(device, self.model.model.dtype))
        return normed

    @torch.no_grad()
    def logits(self, writes: Tensor) -> Tensor:
        """Logits of writes [rows, hidden] for the whole vocabulary: float32 [rows, vocabulary]."""
        logits: Tensor = self.unembedding(self.normed(writes)).float()
        return logits

    def of_tokens(self, tokens: Sequence[int]) -> "TokenReadout":
        """The same for chosen tokens, whose rows of the unembedding are copied once."""
        chosen = torch.tensor(tokens, dtype=torch.int64)
        if not is_matrix(self.unembedding) or not has_plain_weight(self.unembedding):
            return TokenReadout(self, chosen)
        weight, bias = self.unembedding.weight, self.unembedding.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        chosen = chosen.to(weight.device)
        rows = weight.detach()[chosen].float()
        return TokenReadout(self, chosen, rows, None if bias is None else bias.detach()[chosen].float())

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


@dataclass(frozen=True)
class TokenReadout:
    """Turns writes into the logits of chosen tokens.

    `rows` float32 [tokens, hidden] and `bias` [tokens] are the unembedding's; without `rows`, for example in a
    quantized model, the logits of the whole vocabulary are computed.
    """

    readout: Readout
    tokens: Tensor
    rows: Tensor | None = None
    bias: Tensor | None = None

    def logits(self, writes: Tensor) -> Tensor:
        """Logits of writes [rows, hidden]: float32 [rows, tokens]."""
        if self.rows is None:
            logits = self.readout.logits(writes)
            return logits[:, self.tokens.to(logits.device)]
        normed = self.readout.normed(writes).float()
        logits = _product(normed, self.rows.T)
        return logits if self.bias is None else logits.add_(self.bias)

    def is_odd(self, writes: Tensor) -> bool:
        """Whether the logits of the negated writes are the negated logits."""
        if self.rows is None or self.bias is not None:
            return False
        return torch.equal(self.readout.normed(-writes), -self.readout.normed(writes))


def _product(left: Tensor, right: Tensor) -> Tensor:
    if left.device.type != "cpu":
        return left @ right
    # numpy's matrix product is faster than torch's on AMD processors.
    return torch.from_numpy(left.numpy() @ right.numpy())


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
    raise SafetyNeuronsError(
        f"The final norm of {model.name} was not found, so its neurons cannot be read in words. Choose another model."
    )


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
