"""Where the neurons are: on every architecture, against what its configuration says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.discovery import find_neurons
from safety_neurons.models.neurons.hook_points import DenseHookPoint
from safety_neurons.models.neurons.trace import decoder_layers

LAYERS, WIDTH, HIDDEN = 3, 48, 32
TOKENS = torch.tensor([[7, 40, 21, 99, 180, 13, 60]])
POST_NORM = {"gemma2", "gemma3", "olmo2", "glm4", "gemma3_vision"}
# (layer, neurons) of every site: routed experts together, then the shared one.
SITES = {
    "bloom": [(0, 128), (1, 128), (2, 128)],
    "mixtral": [(0, 4 * 48), (1, 4 * 48), (2, 4 * 48)],
    "olmoe": [(0, 4 * 48), (1, 4 * 48), (2, 4 * 48)],
    "gpt_oss": [(0, 4 * 48), (1, 4 * 48), (2, 4 * 48)],
    "qwen2_moe": [(0, 4 * 16), (0, 24), (1, 4 * 16), (1, 24), (2, 4 * 16), (2, 24)],
    "qwen3_moe": [(0, 4 * 16), (1, 4 * 16), (2, 4 * 16)],
    "deepseek_v3": [(0, 48), (1, 8 * 16), (1, 16), (2, 8 * 16), (2, 16)],
}


def architecture(model: ChatModel) -> str:
    return model.name.removeprefix("tiny-")


def hooks_left(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


def test_every_layer_and_every_neuron_is_read(any_model: ChatModel) -> None:
    expected = SITES.get(architecture(any_model), [(layer, WIDTH) for layer in range(LAYERS)])
    neurons = sum(width for _, width in expected)
    coverage = any_model.coverage
    assert [(hook_point.layer, hook_point.width) for hook_point in any_model.hook_points] == expected
    assert (coverage.layers, coverage.layers_total, coverage.without_mlp) == (LAYERS, LAYERS, 0)
    assert (coverage.neurons, coverage.unread) == (neurons, ())
    assert str(coverage) == f"3/3 layers, {neurons} neurons"


def test_names_lead_to_the_modules(any_model: ChatModel) -> None:
    layers = decoder_layers(any_model.model)
    for hook_point in any_model.hook_points:
        module = any_model.model.get_submodule(hook_point.name)
        assert module in layers[hook_point.layer].modules()
        if isinstance(hook_point, DenseHookPoint):
            assert module is hook_point.write
            for read in hook_point.reads:
                assert any_model.model.get_submodule(read.name) is read.module
        else:
            assert hook_point.blocks == len(module.get_parameter("down_proj"))
    assert len({hook_point.name for hook_point in any_model.hook_points}) == len(any_model.hook_points)


def test_post_norm_is_noticed_where_there_is_one(any_model: ChatModel) -> None:
    assert {hook_point.post_norm for hook_point in any_model.hook_points} == {architecture(any_model) in POST_NORM}


def test_a_models_eyes_have_no_neurons(make_model: Callable[..., ChatModel]) -> None:
    """The vision tower's layers are not the decoder's, also where there are more of them and they are larger."""
    tower = {"model_type": "clip_vision_model", "num_hidden_layers": 5, "hidden_size": 128, "num_attention_heads": 4}
    model = make_model("llava", vision_config=tower | {"image_size": 16, "patch_size": 8})
    assert [hook_point.name for hook_point in model.hook_points] == [
        f"model.language_model.layers.{layer}.mlp.down_proj" for layer in range(LAYERS)
    ]


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("llama", [("gate_proj", 0), ("up_proj", 0)]),
        ("phi3", [("gate_up_proj", 0), ("gate_up_proj", WIDTH)]),
        ("glm4", [("gate_up_proj", 0), ("gate_up_proj", WIDTH)]),
        ("gpt2", [("c_fc", 0)]),
        ("opt", [("fc1", 0)]),
        ("gpt_neox", [("dense_h_to_4h", 0)]),
    ],
)
def test_reads(name: str, reads: list[tuple[str, int]], make_model: Callable[..., ChatModel]) -> None:
    for hook_point in make_model(name).hook_points:
        assert isinstance(hook_point, DenseHookPoint)
        assert [(read.name.rsplit(".", 1)[1], read.offset) for read in hook_point.reads] == reads


def test_finding_leaves_the_model_as_it_was(any_model: ChatModel) -> None:
    weights = {name: value.clone() for name, value in any_model.model.state_dict().items()}
    with torch.no_grad():
        before = any_model.model(input_ids=TOKENS).logits
        assert any_model.hook_points
        assert hooks_left(any_model.model) == []
        assert torch.equal(any_model.model(input_ids=TOKENS).logits, before)
    assert all(torch.equal(value, weights[name]) for name, value in any_model.model.state_dict().items())
    assert all(parameter.grad is None for parameter in any_model.model.parameters())


@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_an_exception_at_any_call_of_the_mlp_leaves_nothing(
    name: str, make_model: Callable[..., ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(name)
    mlp = decoder_layers(model.model)[0].get_submodule("mlp")
    original, calls, last_call = mlp.forward, 0, 0

    def failing(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == last_call:
            raise RuntimeError("power cut")
        return original(*args, **kwargs)

    monkeypatch.setattr(mlp, "forward", failing)
    find_neurons(model.model)
    needed, configs = calls, {id(getattr(module, "config", None)) for module in model.model.modules()}
    assert needed > 4
    for call in range(1, needed + 1):
        calls, last_call = 0, call
        with pytest.raises(RuntimeError, match="power cut"):
            find_neurons(model.model)
        assert hooks_left(model.model) == []
        assert {id(getattr(module, "config", None)) for module in model.model.modules()} == configs


def test_a_neuron_that_never_fires_is_no_reason_to_refuse_the_model(make_model: Callable[..., ChatModel]) -> None:
    """ReLU models have many such neurons: the one that is tried may be one of them."""
    model = make_model("opt")
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name.endswith("fc1.bias"):
                parameter[::2] = -20
    assert model.coverage.neurons == LAYERS * WIDTH
    assert all(isinstance(hook_point, DenseHookPoint) and hook_point.reads for hook_point in model.hook_points)


def test_an_expert_that_no_token_is_sent_to_is_no_reason_to_refuse_the_model(
    make_model: Callable[..., ChatModel],
) -> None:
    model = make_model("gpt_oss")
    with torch.no_grad():
        for layer in decoder_layers(model.model):
            layer.get_parameter("mlp.router.bias")[2:] = -1000
    assert model.coverage.neurons == LAYERS * 4 * WIDTH


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_pass_the_check(dtype: torch.dtype, any_model: ChatModel) -> None:
    any_model.model.to(dtype)
    assert any_model.coverage.layers == LAYERS
    assert {hook_point.post_norm for hook_point in any_model.hook_points} == {architecture(any_model) in POST_NORM}
    assert any_model.hook_points[0].write_vectors().dtype == torch.float32


def test_layers_without_an_mlp_are_told(make_model: Callable[..., ChatModel]) -> None:
    """A layer that only attends has no neurons, and is no layer that could not be read."""

    class Nothing(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return torch.zeros_like(hidden)

    model = make_model()
    decoder_layers(model.model)[1].mlp = Nothing()
    assert [hook_point.layer for hook_point in model.hook_points] == [0, 2]
    assert model.coverage.without_mlp == 1
    assert str(model.coverage) == "2/2 layers, 96 neurons (1 layers have no MLP)"
