"""Hooks on neurons: they see and change what the model computes, and leave nothing behind."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import follow_positions, forward
from safety_neurons.models.neurons.hook_points import ActivationHook, Activations, HookPoint, activation_hooks

TEXTS = ["Hi there", "What?", "Tell me about the sea."]
MIXTURE = "qwen2_moe"


def logits(model: ChatModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = forward(model.model, model.encode(TEXTS), last_logits=0).logits
    return found


def state(model: ChatModel) -> list[Any]:
    """All that hooks could leave behind: hooks, and experts that run in another way."""
    experts = [model.model.get_submodule(hook_point.name) for hook_point in model.hook_points if hook_point.blocks > 1]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.model.modules()]
    return [hooks, *((id(one.config), one.config._experts_implementation) for one in experts)]


def leave(_activations: Activations) -> None:
    return None


def silence(activations: Activations) -> Tensor:
    return torch.zeros_like(activations.values)


class Interrupted(Exception):
    pass


def interrupt(_activations: Activations) -> None:
    raise Interrupted


@pytest.mark.parametrize("hook", [leave, lambda activations: activations.values.clone()], ids=["none", "copy"])
def test_a_hook_that_changes_nothing_changes_nothing(hook: ActivationHook, any_model: ChatModel) -> None:
    before, base = logits(any_model), state(any_model)
    with activation_hooks((hook_point, hook) for hook_point in any_model.hook_points):
        hooked = logits(any_model)
    if all(hook_point.blocks == 1 for hook_point in any_model.hook_points):
        assert torch.equal(hooked, before)
    else:
        # Experts run one after the other while they are hooked, which rounds in another order.
        torch.testing.assert_close(hooked, before, rtol=1e-4, atol=1e-5)
    assert state(any_model) == base
    assert torch.equal(logits(any_model), before)


def test_hooks_run_in_the_order_in_which_they_came(one_of_each: ChatModel) -> None:
    seen: list[tuple[str, float]] = []

    def multiply(name: str, factor: float) -> ActivationHook:
        def hook(activations: Activations) -> Tensor:
            seen.append((name, float(activations.values.detach().abs().sum())))
            return activations.values * factor

        return hook

    hook_point = one_of_each.hook_points[0]
    with hook_point.hooked(multiply("first", 3.0)), hook_point.hooked(multiply("second", 1 / 3)):
        both = logits(one_of_each)
    assert [name for name, _ in seen[:2]] == ["first", "second"]
    assert seen[1][1] == pytest.approx(3 * seen[0][1], rel=1e-4)
    torch.testing.assert_close(both, logits(one_of_each), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("at", [0, -1])
def test_an_exception_in_a_hook_leaves_nothing(at: int, any_model: ChatModel) -> None:
    before, base = logits(any_model), state(any_model)
    hooks: list[ActivationHook] = [leave] * len(any_model.hook_points)
    hooks[at] = interrupt
    with pytest.raises(Interrupted), activation_hooks(zip(any_model.hook_points, hooks, strict=True)):
        logits(any_model)
    assert state(any_model) == base
    assert torch.equal(logits(any_model), before)


def test_an_exception_while_hooks_are_set_leaves_nothing(one_of_each: ChatModel) -> None:
    base = state(one_of_each)

    def hook_points() -> Any:
        yield one_of_each.hook_points[0], leave
        yield one_of_each.hook_points[1], leave
        raise Interrupted

    with pytest.raises(Interrupted), activation_hooks(hook_points()):
        pass
    assert state(one_of_each) == base


def test_an_exception_in_one_hook_leaves_the_hooks_around_it(one_of_each: ChatModel) -> None:
    before = logits(one_of_each)
    with activation_hooks((hook_point, silence) for hook_point in one_of_each.hook_points):
        silenced, around = logits(one_of_each), state(one_of_each)
        with (
            pytest.raises(Interrupted),
            activation_hooks((hook_point, interrupt) for hook_point in one_of_each.hook_points),
        ):
            logits(one_of_each)
        assert state(one_of_each) == around
        assert torch.equal(logits(one_of_each), silenced)
    assert torch.equal(logits(one_of_each), before)


@pytest.mark.parametrize("kept", ["first", "second"])
def test_contexts_may_close_in_any_order(kept: str, any_model: ChatModel) -> None:
    before, base = logits(any_model), state(any_model)

    def hooked(hook: ActivationHook) -> contextlib.AbstractContextManager[None]:
        return activation_hooks((hook_point, hook) for hook_point in any_model.hook_points)

    def halve(activations: Activations) -> Tensor:
        return activations.values / 2

    contexts = {"first": hooked(silence), "second": hooked(halve)}
    alone = {}
    for name, hook in {"first": silence, "second": halve}.items():
        with hooked(hook):
            alone[name] = logits(any_model)
    for context in contexts.values():
        context.__enter__()
    contexts.pop("second" if kept == "first" else "first").__exit__(None, None, None)
    assert torch.equal(logits(any_model), alone[kept])
    contexts.pop(kept).__exit__(None, None, None)
    assert state(any_model) == base
    assert torch.equal(logits(any_model), before)


def test_hooked_experts_leave_other_models_of_the_same_configuration(make_model: Callable[..., ChatModel]) -> None:
    one, other = make_model(MIXTURE), make_model(MIXTURE, seed=1)
    for mine, theirs in zip(one.model.modules(), other.model.modules(), strict=True):
        if hasattr(mine, "config"):
            theirs.config = mine.config
    expected, base = logits(other), state(other)
    with activation_hooks((hook_point, silence) for hook_point in one.hook_points):
        assert state(other) == base
        assert torch.equal(logits(other), expected)


def test_gradients_flow_through_hooked_neurons(one_of_each: ChatModel) -> None:
    shifts = [torch.zeros(hook_point.width, requires_grad=True) for hook_point in one_of_each.hook_points]

    def add(shift: Tensor) -> ActivationHook:
        def hook(activations: Activations) -> Tensor:
            values, first = activations.values, activations.first
            return values + shift[first : first + values.shape[1]]

        return hook

    with activation_hooks(zip(one_of_each.hook_points, map(add, shifts), strict=True)):
        one_of_each.model(**one_of_each.encode(TEXTS)).logits[:, -1, 5].sum().backward()
    for hook_point, shift in zip(one_of_each.hook_points, shifts, strict=True):
        assert shift.grad is not None, hook_point.name
        assert float(shift.grad.abs().max()) > 0, hook_point.name


def padded(model: ChatModel, text: str, left: int, right: int) -> dict[str, Tensor]:
    tokens = model.encode([text])["input_ids"]
    assert isinstance(tokens, Tensor)
    row = torch.nn.functional.pad(tokens, (left, right), value=0)
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (left, right), value=0)
    return {"input_ids": row, "attention_mask": mask}


def by_position(model: ChatModel, inputs: dict[str, Tensor]) -> dict[tuple[int, int, int], Tensor]:
    """The activations that a hook sees of real tokens, by site, block of neurons and place from the prompt's end."""
    found: dict[tuple[int, int, int], Tensor] = {}
    with torch.inference_mode(), follow_positions(model.model) as where:

        def gather(number: int) -> ActivationHook:
            def hook(activations: Activations) -> None:
                for row, offset in zip(activations.values, activations.of_tokens(where.offsets).tolist(), strict=True):
                    if offset < 0 and offset >= -inputs["input_ids"].shape[1]:
                        found[number, activations.first, offset] = row

            return hook

        with activation_hooks((hook_point, gather(number)) for number, hook_point in enumerate(model.hook_points)):
            forward(model.model, inputs)
    return found


@pytest.mark.parametrize(("left", "right"), [(9, 0), (0, 9), (2, 5)])
def test_a_prompts_activations_do_not_depend_on_its_padding(left: int, right: int, any_model: ChatModel) -> None:
    alone = by_position(any_model, padded(any_model, TEXTS[2], 0, 0))
    found = by_position(any_model, padded(any_model, TEXTS[2], left, right))
    assert found.keys() == alone.keys()
    assert {offset for _, _, offset in found} == set(range(-len(TEXTS[2]), 0))
    for place, expected in alone.items():
        torch.testing.assert_close(found[place], expected, rtol=1e-3, atol=1e-4)


def test_sites_of_a_layer_are_told_apart(make_model: Callable[..., ChatModel]) -> None:
    """A shared expert beside routed ones: two sites in one layer, each with neurons of its own."""
    hook_points: tuple[HookPoint, ...] = make_model(MIXTURE).hook_points
    assert [(hook_point.layer, hook_point.blocks) for hook_point in hook_points] == [
        (0, 4),
        (0, 1),
        (1, 4),
        (1, 1),
        (2, 4),
        (2, 1),
    ]
    assert len({hook_point.name for hook_point in hook_points}) == len(hook_points)
