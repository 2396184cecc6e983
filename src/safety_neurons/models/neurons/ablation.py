"""Checks hook points by ablation: what a layer loses without neurons must be the sum of their writes."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from safety_neurons.models.neurons.hook_points import (
    Activations,
    DenseHookPoint,
    HookPoint,
    InputProjection,
    activation_hooks,
    matrix_shape,
)
from safety_neurons.models.neurons.trace import DUMMY_SHAPE, ModuleCall, UnreadableLayer

# A module and the number of its run, in case it runs more than once.
Run = tuple[nn.Module, int]


@dataclass
class Observation:
    """One run of a layer in float32: the inputs of its modules, the outputs of its norms, and its output."""

    into: dict[Run, Tensor]
    from_norms: dict[Run, Tensor]
    output: Tensor


def observe(call: ModuleCall, norms: set[nn.Module], without: tuple[HookPoint, ...] = ()) -> Observation:
    """Run a layer with the neurons of the hook points `without` ablated: their activations are zero."""
    into: dict[Run, Tensor] = {}
    out: dict[Run, Tensor] = {}
    runs: Counter[nn.Module] = Counter()

    def before(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tensor = ModuleCall(module, args, keywords).input
        runs[module] += 1
        if tensor is not None:
            into[module, runs[module]] = tensor.detach().float().clone()

    def after(norm: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(output, Tensor):
            out[norm, runs[norm]] = output.detach().float().clone()

    with contextlib.ExitStack() as stack:
        stack.enter_context(activation_hooks((point, _zeros) for point in without))
        for module in {inner.module for inner in call.walk()}:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            if module in norms:
                stack.callback(module.register_forward_hook(after).remove)
        return Observation(into, out, call.run())


def _zeros(activations: Activations) -> Tensor:
    return torch.zeros_like(activations.values)


def contributions(call: ModuleCall, point: HookPoint) -> Tensor:
    """The sum over the neurons of activation times write vector, before `scale`: float32 [tokens, hidden]."""
    tokens = DUMMY_SHAPE[0] * DUMMY_SHAPE[1]
    total = torch.zeros(0)

    def add(activations: Activations) -> None:
        nonlocal total
        values, first, rows, routing = activations
        if rows is None and len(values) != tokens:
            raise UnreadableLayer(f"{point.name} runs on {len(values)} of {tokens} tokens, and it is not known which")
        neurons = torch.arange(first, first + values.shape[-1])
        write = values.float() @ point.raw_write_vectors(neurons).to(values.device)
        if routing is not None:
            write = write * routing[:, None].float()
        if not len(total):
            total = torch.zeros(tokens, write.shape[-1], device=write.device)
        rows = torch.arange(tokens) if rows is None else rows
        total.index_add_(0, rows.to(total.device), write.to(total.device))

    with activation_hooks([(point, add)]):
        call.run()
    return total


class Fold(NamedTuple):
    """How a write reaches the residual stream: whether through a norm, and multiplied by what."""

    post_norm: bool
    scale: Tensor | float


def fold(call: ModuleCall, point: HookPoint, full: Observation, silent: Observation) -> Fold:
    """Follow the write of a hook point to the residual stream.

    `full` and `silent` are the layer with all neurons and without any. What is lost without the neurons of this hook
    point must be the sum of their contributions, times a constant, a factor per residual dimension, or a factor per
    token (the gate of a shared expert, the division of a norm).

    Raises:
        UnreadableLayer: it does not arrive there, or is changed in another way.
    """
    expected = contributions(call, point)
    if not expected.any():
        raise UnreadableLayer(f"{point.name} writes nothing on the dummy input, so it cannot be checked")
    without = observe(call, {norm for norm, _ in full.from_norms}, (point,))
    epsilon = _epsilon(call)
    gain: Tensor | float = 1.0
    post_norm = False
    for run, tensor in full.into.items():
        if run not in without.into or run not in silent.into or tensor.shape != without.into[run].shape:
            continue
        factor = _factor(tensor, without.into[run], expected, epsilon)
        if factor is None:
            continue
        if not _same_for_all_tokens(silent.into[run], len(expected), epsilon):
            # Without neurons the module's input still differs between tokens: it reads the residual stream.
            return Fold(post_norm, gain * _constant(factor))
        if run in full.from_norms:
            of_norm = _gain(run[0], tensor) if tensor.numel() == expected.numel() else None
            if of_norm is None:
                raise UnreadableLayer(
                    f"the norm after {point.name} is not a root-mean-square norm of one residual stream"
                )
            gain, post_norm = gain * of_norm, True
            expected = (full.from_norms[run] - without.from_norms[run]).reshape(expected.shape)
    factor = _factor(full.output, without.output, expected, epsilon)
    if factor is None:
        reached = not torch.equal(full.output, without.output)
        problem = "the layer loses something else without them" if reached else "they do not reach its output"
        raise UnreadableLayer(f"the contributions of {point.name} do not add up to what the MLP writes: {problem}")
    if _same_for_all_tokens(silent.output, len(expected), epsilon):
        raise UnreadableLayer(f"it returns what {point.name} writes, not the residual stream")
    return Fold(post_norm, gain * _constant(factor))


def _same_for_all_tokens(values: Tensor, tokens: int, epsilon: float) -> bool:
    rows = _by_token(values, tokens)
    return torch.allclose(rows, rows[:1].expand_as(rows), rtol=8 * epsilon, atol=1e-6)


def _by_token(values: Tensor, tokens: int) -> Tensor:
    """One row per token; residual streams may come before or after the tokens."""
    if values.dim() > 3 and values.shape[:2] != DUMMY_SHAPE:
        values = values.movedim(0, -2)
    return values.reshape(tokens, -1)


def _epsilon(call: ModuleCall) -> float:
    """The rounding of the layer's values, which are compared in float32."""
    assert call.input is not None
    return max(torch.finfo(call.input.dtype).eps, torch.finfo(torch.float32).eps)


def _factor(full: Tensor, without: Tensor, expected: Tensor, epsilon: float) -> Tensor | None:
    """The factor (one, per token or per dimension) of `expected` [tokens, hidden] in `full - without`, or None."""
    tokens, hidden = expected.shape
    if full.shape[-1] % hidden or full.numel() % expected.numel():
        return None
    # Layers with several residual streams write to each with its own weight.
    change, seen = (_by_token(values, tokens).reshape(tokens, -1, hidden) for values in (full - without, full))
    if not change.any():
        return None
    expected = expected[:, None].to(change.device)
    # The rounding of the residual stream limits the comparison: its few massive activations are rounded by more than
    # a whole write. So each element is weighted by its precision.
    noise = 2 * epsilon * seen.abs() + 1e-2 * change.square().mean().sqrt()
    weight = noise.square().reciprocal()
    for dimensions in ((0, 1, 2), (2,), (0,)):
        squares = (weight * expected.square()).sum(dimensions, keepdim=True).clamp_min(1e-30)
        factor = (weight * change * expected).sum(dimensions, keepdim=True) / squares
        if ((change - factor * expected) / noise).square().mean() <= 0.5:
            return factor
    return None


def _constant(factor: Tensor) -> Tensor | float:
    """One number, or one per residual dimension; 1 for a factor that differs between tokens."""
    if factor.numel() == 1:
        value = float(factor)
        return 1.0 if abs(value - 1) < 1e-2 else value
    return factor.flatten() if factor.shape[:2] == (1, 1) else 1.0


def _gain(norm: nn.Module, like: Tensor) -> Tensor | None:
    """The gain of a root-mean-square norm per residual dimension; None for other norms."""
    dtype = next(norm.parameters(), like).dtype
    ones = torch.ones(1, 1, like.shape[-1], device=like.device, dtype=dtype)
    signs = ones.clone()
    signs[..., ::2] = -1
    gain = norm(ones).float().flatten()
    same = torch.allclose(norm(signs).float().flatten(), gain * signs.float().flatten(), rtol=1e-2, atol=1e-4)
    return gain if same else None


def check_identity(call: ModuleCall, points: Sequence[HookPoint], full: Observation, silent: Observation) -> None:
    """Check that hooking alone does not change the output, as hooked experts run in another implementation.

    Raises:
        UnreadableLayer: the output of the layer differs.
    """
    with activation_hooks((point, lambda _activations: None) for point in points):
        hooked = call.run()
    written = (full.output - silent.output).square().mean().sqrt()
    noise = 8 * _epsilon(call) * (full.output.abs() + written)
    if ((hooked - full.output) / noise).square().mean() > 1:
        raise UnreadableLayer("its experts do not compute what transformers' registry of experts describes")


def find_reads(
    call: ModuleCall, point: DenseHookPoint, matrices: list[nn.Module], names: dict[nn.Module, str], hidden: int
) -> tuple[InputProjection, ...]:
    """The blocks of rows whose row i changes activation i of the same token and nothing else.

    Empty if a matrix that feeds the neurons orders its rows differently: such neurons can be read and calibrated, but
    not tuned.
    """
    before = _activations(call, point)
    reads: list[InputProjection] = []
    for module in matrices:
        inputs, outputs = matrix_shape(module)
        if module is point.write or inputs != hidden or outputs % point.width:
            continue
        for part in range(outputs // point.width):
            read = InputProjection(names[module], module, part * point.width)
            # A neuron that its gate switches off may not change at all, so others are tried.
            for neuron in range(min(1, point.width - 1), point.width, max(1, point.width // 16)):
                after = _activations(call, point, read, neuron)
                moved = (after != before).nonzero().tolist() if after.shape == before.shape else [[-1, -1]]
                if moved:
                    break
            if moved == [[0, neuron]]:
                reads.append(read)
            elif moved:
                return ()
    return tuple(reads)


def _activations(
    call: ModuleCall, point: DenseHookPoint, read: InputProjection | None = None, neuron: int = 0
) -> Tensor:
    """Activations [tokens, neurons], optionally with one row of an input projection disturbed for the first token."""

    def disturb(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert read is not None
        output = output.clone()
        output.view(-1, output.shape[-1])[0, read.offset + neuron] += 2 * (output.abs().max() + 1)
        return output

    seen: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        if read is not None:
            stack.callback(read.module.register_forward_hook(disturb).remove)
        stack.enter_context(activation_hooks([(point, lambda activations: seen.append(activations.values))]))
        call.run()
    return seen[0]
