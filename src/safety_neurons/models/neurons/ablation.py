"""The check of what was found: a layer is run with and without neurons, and what is lost must be their sum."""

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

Run = tuple[nn.Module, int]


@dataclass
class Observation:
    """One run of a layer, all in float32: what went into its modules, what came out of its norms, and its output.

    A module's runs are numbered, in case it runs more than once.
    """

    into: dict[Run, Tensor]
    from_norms: dict[Run, Tensor]
    output: Tensor


def observe(call: ModuleCall, norms: set[nn.Module], without: tuple[HookPoint, ...] = ()) -> Observation:
    """Run a layer without the neurons of some sites: their activations are zero."""
    into: dict[Run, Tensor] = {}
    out: dict[Run, Tensor] = {}
    runs: Counter[nn.Module] = Counter()

    def before(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given = ModuleCall(module, args, keywords).input
        runs[module] += 1
        if given is not None:
            into[module, runs[module]] = given.detach().float().clone()

    def after(norm: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(output, Tensor):
            out[norm, runs[norm]] = output.detach().float().clone()

    with contextlib.ExitStack() as stack:
        stack.enter_context(activation_hooks((hook_point, _zeros) for hook_point in without))
        for module in {inner.module for inner in call.walk()}:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            if module in norms:
                stack.callback(module.register_forward_hook(after).remove)
        return Observation(into, out, call.run())


def _zeros(activations: Activations) -> Tensor:
    return torch.zeros_like(activations.values)


def contributions(call: ModuleCall, hook_point: HookPoint) -> Tensor:
    """The sum over a site's neurons of activation times write vector, before `scale`: float32 [tokens, hidden]."""
    tokens = DUMMY_SHAPE[0] * DUMMY_SHAPE[1]
    total = torch.zeros(0)

    def add(activations: Activations) -> None:
        nonlocal total
        values, first, rows, routing = activations
        if rows is None and len(values) != tokens:
            raise UnreadableLayer(f"{hook_point.name} runs on {len(values)} of {tokens} tokens, and which is not known")
        neurons = torch.arange(first, first + values.shape[-1])
        write = values.float() @ hook_point.raw_write_vectors(neurons).to(values.device)
        if routing is not None:
            write = write * routing[:, None].float()
        if not len(total):
            total = torch.zeros(tokens, write.shape[-1], device=write.device)
        rows = torch.arange(tokens) if rows is None else rows
        total.index_add_(0, rows.to(total.device), write.to(total.device))

    with activation_hooks([(hook_point, add)]):
        call.run()
    return total


class Fold(NamedTuple):
    """How a write reaches the residual stream: through a norm or not, and times what."""

    post_norm: bool
    scale: Tensor | float


def fold(call: ModuleCall, hook_point: HookPoint, full: Observation, silent: Observation) -> Fold:
    """Follow a site's write to the residual stream.

    `full` and `silent` are the layer with all neurons and without any. What is lost without this site's neurons must
    be the sum of their contributions, times a constant, a factor per residual dimension, or a factor per token (the
    gate of a shared expert, the division of a norm).

    Raises:
        UnreadableLayer: it does not arrive there, or as something else.
    """
    expected = contributions(call, hook_point)
    if not expected.any():
        raise UnreadableLayer(f"{hook_point.name} writes nothing on the dummy input, so it cannot be checked")
    without = observe(call, {norm for norm, _ in full.from_norms}, (hook_point,))
    epsilon = _epsilon(call)
    gain: Tensor | float = 1.0
    post_norm = False
    for run, given in full.into.items():
        if run not in without.into or run not in silent.into or given.shape != without.into[run].shape:
            continue
        factor = _factor(given, without.into[run], expected, epsilon)
        if factor is None:
            continue
        if not _same_for_all_tokens(silent.into[run], len(expected), epsilon):
            # Without neurons the module still sees something of each token: it reads the residual stream itself.
            return Fold(post_norm, gain * _constant(factor))
        if run in full.from_norms:
            of_norm = _gain(run[0], given) if given.numel() == expected.numel() else None
            if of_norm is None:
                raise UnreadableLayer(
                    f"the norm after {hook_point.name} is no root-mean-square norm of one residual stream"
                )
            gain, post_norm = gain * of_norm, True
            expected = (full.from_norms[run] - without.from_norms[run]).reshape(expected.shape)
    factor = _factor(full.output, without.output, expected, epsilon)
    if factor is None:
        reached = not torch.equal(full.output, without.output)
        off = "the layer loses something else without them" if reached else "they do not reach its output"
        raise UnreadableLayer(f"the contributions of {hook_point.name} do not add up to what the MLP writes: {off}")
    if _same_for_all_tokens(silent.output, len(expected), epsilon):
        raise UnreadableLayer(f"what it returns is what {hook_point.name} writes, not the residual stream")
    return Fold(post_norm, gain * _constant(factor))


def _same_for_all_tokens(values: Tensor, tokens: int, epsilon: float) -> bool:
    rows = _by_token(values, tokens)
    return torch.allclose(rows, rows[:1].expand_as(rows), rtol=8 * epsilon, atol=1e-6)


def _by_token(values: Tensor, tokens: int) -> Tensor:
    """One row a token; residual streams may come before the tokens or after."""
    if values.dim() > 3 and values.shape[:2] != DUMMY_SHAPE:
        values = values.movedim(0, -2)
    return values.reshape(tokens, -1)


def _epsilon(call: ModuleCall) -> float:
    """The rounding of the layer's numbers, which are looked at in float32."""
    assert call.input is not None
    return max(torch.finfo(call.input.dtype).eps, torch.finfo(torch.float32).eps)


def _factor(full: Tensor, without: Tensor, expected: Tensor, epsilon: float) -> Tensor | None:
    """The factor by which what is lost is `expected` [tokens, hidden]: one, or one per token or dimension; or None."""
    tokens, hidden = expected.shape
    if full.shape[-1] % hidden or full.numel() % expected.numel():
        return None
    # Layers that keep several residual streams write to each of them with a weight of its own.
    change, seen = (_by_token(values, tokens).reshape(tokens, -1, hidden) for values in (full - without, full))
    if not change.any():
        return None
    expected = expected[:, None].to(change.device)
    # What can be seen of the write is limited by the rounding of the residual stream, whose few massive activations
    # are rounded by more than a whole write: each element counts as far as it is known.
    noise = 2 * epsilon * seen.abs() + 1e-2 * change.square().mean().sqrt()
    weight = noise.square().reciprocal()
    for dimensions in ((0, 1, 2), (2,), (0,)):
        squares = (weight * expected.square()).sum(dimensions, keepdim=True).clamp_min(1e-30)
        factor = (weight * change * expected).sum(dimensions, keepdim=True) / squares
        if ((change - factor * expected) / noise).square().mean() <= 0.5:
            return factor
    return None


def _constant(factor: Tensor) -> Tensor | float:
    """One number, or one per residual dimension; 1 stands for a factor that every token has of its own."""
    if factor.numel() == 1:
        value = float(factor)
        return 1.0 if abs(value - 1) < 1e-2 else value
    return factor.flatten() if factor.shape[:2] == (1, 1) else 1.0


def _gain(norm: nn.Module, like: Tensor) -> Tensor | None:
    """What a norm multiplies each residual dimension with, besides its division by the length; None for others."""
    dtype = next(norm.parameters(), like).dtype
    ones = torch.ones(1, 1, like.shape[-1], device=like.device, dtype=dtype)
    signs = ones.clone()
    signs[..., ::2] = -1
    gain = norm(ones).float().flatten()
    same = torch.allclose(norm(signs).float().flatten(), gain * signs.float().flatten(), rtol=1e-2, atol=1e-4)
    return gain if same else None


def check_identity(call: ModuleCall, hook_points: Sequence[HookPoint], full: Observation, silent: Observation) -> None:
    """A hook that changes nothing must change nothing: experts run in another way while they are hooked.

    Raises:
        UnreadableLayer: the layer's output is another one.
    """
    with activation_hooks((hook_point, lambda _activations: None) for hook_point in hook_points):
        hooked = call.run()
    written = (full.output - silent.output).square().mean().sqrt()
    noise = 8 * _epsilon(call) * (full.output.abs() + written)
    if ((hooked - full.output) / noise).square().mean() > 1:
        raise UnreadableLayer("its experts compute something else than transformers' registry of experts describes")


def find_reads(
    call: ModuleCall, hook_point: DenseHookPoint, matrices: list[nn.Module], names: dict[nn.Module, str], hidden: int
) -> tuple[InputProjection, ...]:
    """The blocks of rows of which row i moves activation i of the same token, and nothing else.

    None where a matrix that feeds the neurons keeps its rows in another order: such neurons can be read and
    calibrated, not tuned.
    """
    before = _activations(call, hook_point)
    reads: list[InputProjection] = []
    for module in matrices:
        inputs, outputs = matrix_shape(module)
        if module is hook_point.write or inputs != hidden or outputs % hook_point.width:
            continue
        for part in range(outputs // hook_point.width):
            read = InputProjection(names[module], module, part * hook_point.width)
            # A neuron that is switched off by its gate may not move at all; others are tried then.
            for neuron in range(min(1, hook_point.width - 1), hook_point.width, max(1, hook_point.width // 16)):
                after = _activations(call, hook_point, read, neuron)
                moved = (after != before).nonzero().tolist() if after.shape == before.shape else [[-1, -1]]
                if moved:
                    break
            if moved == [[0, neuron]]:
                reads.append(read)
            elif moved:
                return ()
    return tuple(reads)


def _activations(
    call: ModuleCall, hook_point: DenseHookPoint, read: InputProjection | None = None, neuron: int = 0
) -> Tensor:
    """Activations [tokens, neurons], where one row of a read matrix may give another result for the first token."""

    def disturb(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert read is not None
        output = output.clone()
        output.view(-1, output.shape[-1])[0, read.offset + neuron] += 2 * (output.abs().max() + 1)
        return output

    seen: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        if read is not None:
            stack.callback(read.module.register_forward_hook(disturb).remove)
        stack.enter_context(activation_hooks([(hook_point, lambda activations: seen.append(activations.values))]))
        call.run()
    return seen[0]
