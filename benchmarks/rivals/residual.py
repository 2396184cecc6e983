"""The residual stream: read at the last positions of prompts, and changed while a model answers."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safety_neurons.calibration.shift import TokenWindow
from safety_neurons.core.files import fingerprint
from safety_neurons.engines.engine import CachedEngine
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import follow_positions, forward
from safety_neurons.models.generate import in_batches
from safety_neurons.models.neurons.trace import decoder_layers
from safety_neurons.models.shared_prefix import share_prefix
from safety_neurons.runs.context import RunContext

# New values of the residual stream, or of what is added to it: float32 [tokens, hidden] from the same.
Edit = Callable[[Tensor], Tensor]


def read_residuals(model: ChatModel, prompts: Sequence[str], positions: int, batch_size: int) -> Tensor:
    """The output of every layer at the last positions of each prompt: float32 [prompts, layers, positions, hidden]."""
    texts = [model.render(prompt) for prompt in prompts]

    def read(batch: list[int]) -> list[Tensor]:
        seen: list[Tensor] = []

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            seen.append(stream_of(output)[:, -positions:].float().cpu())

        with contextlib.ExitStack() as stack, torch.inference_mode():
            # Left padding puts the last token of every prompt last.
            shared = share_prefix(model.model, model.encode([texts[index] for index in batch]), own=positions)
            for layer in decoder_layers(model.model):
                stack.callback(layer.register_forward_hook(note).remove)
            forward(model.model, shared.inputs, cache=shared.cache)
        return list(torch.stack(seen, 1))

    return torch.stack(in_batches(texts, batch_size, read))


def stream_of(output: Any) -> Tensor:
    """The hidden states [batch, tokens, hidden] in the output of a module."""
    stream = output if isinstance(output, Tensor) else output[0]
    assert isinstance(stream, Tensor)
    return stream


@dataclass(frozen=True)
class ResidualSteering:
    """Changes the outputs of modules at the end of the prompt and in all generated tokens.

    `edits` maps modules to what their output becomes, `inputs` the same for their input. `prompt` is the number of
    tokens at the end of the prompt that change; None means all. `key` is unique for the edits.
    """

    key: str
    edits: Sequence[tuple[nn.Module, Edit]]
    prompt: int | None
    inputs: Sequence[tuple[nn.Module, Edit]] = ()

    def reach(self, _model: ChatModel) -> int | None:
        return self.prompt

    @contextlib.contextmanager
    def opened(self, run: RunContext, engine: CachedEngine) -> Iterator[CachedEngine]:
        with contextlib.ExitStack() as stack:
            where = stack.enter_context(follow_positions(run.model.model, reach=self.prompt))
            window = TokenWindow(where, 1, self.prompt, None)
            for module, edit in self.edits:
                stack.callback(module.register_forward_hook(_after(window, edit)).remove)
            for module, edit in self.inputs:
                stack.callback(module.register_forward_pre_hook(_before(window, edit), with_kwargs=True).remove)
            yield engine.under(f"steered {fingerprint(self.key)}")


def _changed(window: TokenWindow, edit: Edit, stream: Tensor) -> Tensor | None:
    tokens = window.tokens()
    if tokens is None:
        return None
    inside = (tokens.steps >= 0).to(stream.device)
    changed = stream.clone()
    changed[inside] = edit(stream[inside].float()).to(stream.dtype)
    return changed


def _after(window: TokenWindow, edit: Edit) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        changed = _changed(window, edit, stream_of(output))
        if changed is None or isinstance(output, Tensor):
            return changed
        return (changed, *output[1:])

    return hook


def _before(window: TokenWindow, edit: Edit) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        changed = _changed(window, edit, given)
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    return hook
