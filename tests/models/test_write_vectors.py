"""Write vectors and the weights that neurons own, against what each architecture's own modules compute."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.hook_points import (
    Activations,
    DenseHookPoint,
    HookPoint,
    activation_hooks,
    rows_by_neuron,
    rows_by_output,
)
from safety_neurons.models.neurons.trace import decoder_layers

HIDDEN = 32
TOKENS = torch.tensor([[7, 40, 21, 99, 180, 13, 60]])
# The module of a layer whose output is what the MLP writes, where that is not `mlp`; BLOOM's adds the residual to it.
WRITERS = {"opt": "fc2", "bloom": "mlp.dense_4h_to_h"}
NORMS = {
    "gemma2": "post_feedforward_layernorm",
    "gemma3": "post_feedforward_layernorm",
    "gemma3_vision": "post_feedforward_layernorm",
    "olmo2": "post_feedforward_layernorm",
    "glm4": "post_mlp_layernorm",
}
NaiveActivations = Callable[[ChatModel, Tensor], list[tuple[Tensor, Tensor]]]


def shake(model: ChatModel) -> ChatModel:
    """Give biases and the gains of norms values of their own: a fresh model has only zeros and ones there."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.fixture
def shaken(any_model: ChatModel) -> ChatModel:
    return shake(any_model)


@pytest.fixture
def shaken_tunable(tunable_model: ChatModel) -> ChatModel:
    return shake(tunable_model)


def architecture(model: ChatModel) -> str:
    return model.name.removeprefix("tiny-")


def layer_modules(model: ChatModel, layer: int) -> dict[str, nn.Module]:
    """What the tests watch of a layer: where the MLP's write comes from, the norm after it, and the layer itself."""
    name, whole = architecture(model), decoder_layers(model.model)[layer]
    found = {"write": whole.get_submodule(WRITERS.get(name, "mlp")), "layer": whole}
    if name in NORMS:
        found["norm"] = whole.get_submodule(NORMS[name])
    return found


@contextlib.contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What modules are given (`into NAME`) and return (`NAME`) while the context is open: [tokens, hidden]."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in modules.items():

        def note(_module: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            # Falcon adds the attention to it in place.
            found[name] = first.detach().reshape(-1, HIDDEN).clone()
            found[f"into {name}"] = args[0].detach().reshape(len(found[name]), -1)

        handles.append(module.register_forward_hook(note))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def run(model: ChatModel, layer: int) -> dict[str, Tensor]:
    with torch.no_grad(), recorded(layer_modules(model, layer)) as found:
        model.model(input_ids=TOKENS, use_cache=False)
    return found


def summed_contributions(model: ChatModel, layer: int, naive: NaiveActivations, found: dict[str, Tensor]) -> Tensor:
    """Activation times write vector, summed neuron by neuron over the layer: [tokens, hidden]."""
    total = torch.zeros_like(found["layer"])
    for hook_point, (values, routing) in zip(model.hook_points, naive(model, TOKENS), strict=True):
        if hook_point.layer != layer:
            continue
        vectors, part = hook_point.write_vectors(), torch.zeros_like(total)
        for neuron in range(hook_point.width):
            part += (values * routing)[:, neuron, None] * vectors[neuron]
        if architecture(model) == "qwen2_moe" and hook_point.blocks == 1:
            gate = decoder_layers(model.model)[layer].get_submodule("mlp.shared_expert_gate")
            part *= torch.sigmoid(found["into write"] @ gate.get_parameter("weight").detach().T)
        total += part
    return total


def written_bias(model: ChatModel, layer: int, naive: NaiveActivations) -> Tensor | float:
    """What the MLP writes whatever its neurons do."""
    total: Tensor | float = 0
    for hook_point, (_, routing) in zip(model.hook_points, naive(model, TOKENS), strict=True):
        module = model.model.get_submodule(hook_point.name)
        if hook_point.layer != layer:
            continue
        if getattr(module, "bias", None) is not None:
            total = total + module.get_parameter("bias").detach()
        if hasattr(module, "down_proj_bias"):
            for expert, bias in enumerate(module.get_parameter("down_proj_bias").detach()):
                total = total + routing[:, expert * hook_point.width // hook_point.blocks, None] * bias
    return total


def test_the_contributions_add_up_to_what_the_mlp_adds(shaken: ChatModel, naive_activations: NaiveActivations) -> None:
    """To its own output, or where a norm follows, to the norm's output: its gain is in the write vectors."""
    for layer in range(3):
        found = run(shaken, layer)
        expected = found["write"] - written_bias(shaken, layer, naive_activations)
        summed = summed_contributions(shaken, layer, naive_activations, found)
        if "norm" in found:
            size = found["into norm"].pow(2).mean(1, keepdim=True).add(1e-6).sqrt()
            summed, expected = summed / size, found["norm"]
        if architecture(shaken) == "granite":
            expected = expected * 0.3
        torch.testing.assert_close(summed, expected, rtol=1e-3, atol=1e-3)
        assert expected.norm() > 0.1


def test_the_contributions_are_what_the_layer_loses_without_its_neurons(
    shaken: ChatModel, naive_activations: NaiveActivations
) -> None:
    def silence(activations: Activations) -> Tensor:
        return torch.zeros_like(activations.values)

    for layer in range(3):
        full = run(shaken, layer)
        with activation_hooks((hook_point, silence) for hook_point in shaken.hook_points if hook_point.layer == layer):
            silenced = run(shaken, layer)
        expected = summed_contributions(shaken, layer, naive_activations, full)
        if "norm" in full:
            expected = expected / full["into norm"].pow(2).mean(1, keepdim=True).add(1e-6).sqrt()
        torch.testing.assert_close(full["layer"] - silenced["layer"], expected, rtol=1e-3, atol=1e-3)


def test_an_expert_alone_can_be_silenced(mixture: ChatModel, naive_activations: NaiveActivations) -> None:
    """The others write as before: the layer loses what this one wrote, for the tokens that were sent to it."""
    for number, hook_point in enumerate(mixture.hook_points):
        if hook_point.blocks == 1:
            continue
        full, (values, routing) = run(mixture, hook_point.layer), naive_activations(mixture, TOKENS)[number]
        for expert in range(hook_point.blocks):
            neurons = (
                torch.arange(hook_point.width // hook_point.blocks) + expert * hook_point.width // hook_point.blocks
            )

            def silence(activations: Activations, first: int = int(neurons[0])) -> Tensor | None:
                return torch.zeros_like(activations.values) if activations.first == first else None

            with hook_point.hooked(silence):
                lost = full["layer"] - run(mixture, hook_point.layer)["layer"]
            expected = (values * routing)[:, neurons] @ hook_point.write_vectors(neurons)
            torch.testing.assert_close(lost, expected, rtol=1e-3, atol=1e-3)
            assert torch.equal(expected.any(1), routing[:, neurons[0]] > 0)


def test_a_norm_over_the_residual_sum_is_not_the_neurons(
    make_model: Callable[..., ChatModel], naive_activations: NaiveActivations
) -> None:
    """OPT-350m's way: what the neurons add is seen where the sum goes into the norm, before its gain."""
    model = shake(make_model("opt", do_layer_norm_before=False))
    assert [(hook_point.width, hook_point.post_norm) for hook_point in model.hook_points] == [(48, False)] * 3
    for hook_point in model.hook_points:
        layer = decoder_layers(model.model)[hook_point.layer]
        modules = {"write": layer.get_submodule("fc2"), "norm": layer.get_submodule("final_layer_norm")}
        with torch.no_grad(), recorded(modules | {"layer": layer}) as full:
            model.model(input_ids=TOKENS)
        summed = summed_contributions(model, hook_point.layer, naive_activations, full)
        with (
            hook_point.hooked(lambda activations: activations.values * 0),
            torch.no_grad(),
            recorded(modules) as silenced,
        ):
            model.model(input_ids=TOKENS)
        torch.testing.assert_close(full["into norm"] - silenced["into norm"], summed, rtol=1e-3, atol=1e-3)


def test_activations_that_a_hook_sees_are_the_naive_ones(
    any_model: ChatModel, naive_activations: NaiveActivations
) -> None:
    """Every neuron of every token that was sent to it, each once."""
    seen = [
        (torch.zeros(7, hook_point.width), torch.zeros(7, hook_point.width)) for hook_point in any_model.hook_points
    ]

    def hook(number: int) -> Callable[[Activations], None]:
        def note(activations: Activations) -> None:
            values, first, _, routing = activations
            rows = activations.of_tokens(torch.arange(7)[None])
            columns = slice(first, first + values.shape[1])
            assert not seen[number][1][rows, columns].any()
            seen[number][0][rows, columns] = values.float()
            seen[number][1][rows, columns] = (torch.ones(len(values)) if routing is None else routing)[:, None]

        return note

    hooks = [(hook_point, hook(number)) for number, hook_point in enumerate(any_model.hook_points)]
    with torch.no_grad(), activation_hooks(hooks):
        any_model.model(input_ids=TOKENS, use_cache=False)
    for mine, expected in zip(seen, naive_activations(any_model, TOKENS), strict=True):
        torch.testing.assert_close(mine[0], expected[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(mine[1], expected[1], rtol=1e-3, atol=1e-4)


def test_write_vectors_of_some_neurons_are_their_rows(shaken: ChatModel) -> None:
    for hook_point in shaken.hook_points:
        chosen = torch.tensor([hook_point.width - 1, 3, hook_point.width // 2 + 1])
        everything = hook_point.write_vectors()
        assert everything.shape == (hook_point.width, HIDDEN)
        assert everything.dtype == torch.float32
        assert not everything.requires_grad
        assert torch.equal(hook_point.write_vectors(chosen), everything[chosen])


def activations(model: ChatModel, hook_point: HookPoint) -> Tensor:
    """What a site's write matrix is given, [tokens, neurons]."""
    found: list[Tensor] = []
    with torch.no_grad(), hook_point.hooked(lambda seen: found.append(seen.values.clone())):
        model.model(input_ids=TOKENS, use_cache=False)
    return torch.cat(found)


def test_row_of_a_read_matrix_feeds_one_neuron(shaken_tunable: ChatModel) -> None:
    neuron = 5
    for hook_point in shaken_tunable.hook_points:
        assert isinstance(hook_point, DenseHookPoint)
        before = activations(shaken_tunable, hook_point)
        for read in hook_point.reads:
            row = rows_by_output(read.module)[read.offset + neuron]
            with torch.no_grad():
                row.neg_()
            after = activations(shaken_tunable, hook_point)
            with torch.no_grad():
                row.neg_()
            moved = (before != after).any(0).nonzero().flatten().tolist()
            assert moved == [neuron], (read.name, read.offset)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_row_of_the_write_matrix_is_a_view_of_the_weight(name: str, make_model: Callable[..., ChatModel]) -> None:
    model = make_model(name)
    hook_point = model.hook_points[1]
    assert isinstance(hook_point, DenseHookPoint)
    before, given = run(model, 1)["write"], activations(model, hook_point)
    with torch.no_grad():
        rows_by_neuron(hook_point.write)[8] += 1
    expected = given[:, 8, None].expand(-1, HIDDEN)
    torch.testing.assert_close(run(model, 1)["write"] - before, expected, rtol=1e-3, atol=1e-4)


def test_parameters_per_neuron_add_up_to_the_mlps_parameters(any_model: ChatModel) -> None:
    for hook_point in any_model.hook_points:
        modules = [any_model.model.get_submodule(hook_point.name)]
        if isinstance(hook_point, DenseHookPoint):
            modules += dict.fromkeys(read.module for read in hook_point.reads)
        # The bias of the write matrix belongs to no neuron.
        biases = {"down_proj_bias"} | ({"bias"} if isinstance(hook_point, DenseHookPoint) else set())
        total = sum(
            parameter.numel()
            for number, module in enumerate(modules)
            for name, parameter in module.named_parameters()
            if number or name not in biases
        )
        assert hook_point.parameters_per_neuron * hook_point.width == total
