"""Layers that cannot be read: the error, and the two ways on."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.moe import use_experts_implementation

from builders.quick import explain, find
from safety_neurons.calibration.calibration import calibrate
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.discovery import find_neurons
from safety_neurons.models.neurons.trace import decoder_layers

OVERRIDES = r"write_matrices.*allow_partial"
PATTERN = "model.layers.*.mlp*.down_proj"


class WrappedMLP(nn.Module):
    """An MLP, and something that is done with what it writes."""

    def __init__(self, mlp: nn.Module, after: Callable[[Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        self.mlp, self.after = mlp, after

    def forward(self, hidden: Tensor) -> Tensor:
        changed = self.after(self.mlp(hidden))
        assert isinstance(changed, Tensor)
        return changed


class RawMLP(nn.Module):
    """Matrices that are no modules: nothing can be hooked."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(32, 64) * 0.2), nn.Parameter(torch.randn(64, 32) * 0.2)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.relu(hidden @ self.up) @ self.down


class InParallel(nn.Module):
    """A layer, and an MLP of raw matrices beside it that reads and writes the same residual stream."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.up, self.down = nn.Parameter(torch.randn(32, 64) * 0.2), nn.Parameter(torch.randn(64, 32) * 0.2)

    def forward(self, hidden: Tensor, *args: object, **options: object) -> Tensor:
        written: Tensor = self.layer(hidden, *args, **options)
        return written + torch.relu(hidden @ self.up) @ self.down


def cubed(written: Tensor) -> Tensor:
    return written**3


def change(model: ChatModel, layer: int, after: Callable[[Tensor], Tensor] | nn.Module) -> ChatModel:
    whole = decoder_layers(model.model)[layer]
    whole.mlp = WrappedMLP(whole.get_submodule("mlp"), after)
    return model


@pytest.fixture
def broken(model: ChatModel) -> ChatModel:
    """The MLP of the second of three layers writes no sum of its neurons."""
    return change(model, 1, cubed)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (cubed, r"the contributions of model\.layers\.1\.mlp\.mlp\.down_proj do not add up"),
        (nn.LayerNorm(32), "not a root-mean-square norm"),
        (torch.zeros_like, "do not reach its output"),
        (lambda written: written.flip(1), "do not add up|other tokens"),
    ],
    ids=["nonlinear", "layer norm", "unused", "other tokens"],
)
def test_the_error_names_the_layer_the_reason_and_both_ways_on(
    after: Callable[[Tensor], Tensor], reason: str, model: ChatModel
) -> None:
    change(model, 1, after)
    where = r"Layer 1 of LlamaForCausalLM \(model\.layers\.1\) cannot be read: "
    with pytest.raises(SafetyNeuronsError, match=f"{where}.*({reason}).*{OVERRIDES}"):
        find_neurons(model.model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_weights_that_nothing_reads_are_an_error_that_names_them(model: ChatModel) -> None:
    decoder_layers(model.model)[1].mlp = RawMLP()
    with pytest.raises(SafetyNeuronsError, match=rf"Layer 1 .*model\.layers\.1\.mlp\.up belongs neither.*{OVERRIDES}"):
        find_neurons(model.model)


def test_weights_directly_in_a_layer_are_not_overlooked(model: ChatModel) -> None:
    layers = decoder_layers(model.model)
    layers[1] = InParallel(layers[1])
    with pytest.raises(SafetyNeuronsError, match=r"Layer 1 .*model\.layers\.1\.up"):
        find_neurons(model.model)


def test_experts_that_transformers_would_run_in_another_way_are_an_error(make_model: Callable[..., ChatModel]) -> None:
    """Hooked experts run as the registry describes them; where the model itself does not, they would be others."""
    model = make_model("mixtral")
    experts = decoder_layers(model.model)[1].get_submodule("mlp.experts")

    class Rectified(type(experts)):  # type: ignore[misc]
        def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
            written = torch.zeros_like(hidden)
            for slot in range(chosen.shape[1]):
                for token, expert in enumerate(chosen[:, slot].tolist()):
                    values = (self.gate_up_proj[expert] @ hidden[token]).chunk(2)[0].relu()
                    written[token] += weights[token, slot] * (self.down_proj[expert] @ values)
            return written

    model.model.set_experts_implementation("eager")
    experts.__class__ = use_experts_implementation(Rectified)
    with pytest.raises(SafetyNeuronsError, match=rf"Layer 1 .*experts do not compute.*{OVERRIDES}"):
        find_neurons(model.model)


def test_experts_that_do_not_ask_the_registry_are_an_error(make_model: Callable[..., ChatModel]) -> None:
    """Their hooks would never run."""
    model = make_model("mixtral")
    experts = decoder_layers(model.model)[1].get_submodule("mlp.experts")
    experts.forward = lambda hidden, _chosen, weights: hidden.tanh() * weights.sum(1, keepdim=True)
    with pytest.raises(SafetyNeuronsError, match=r"Layer 1"):
        find_neurons(model.model)


def test_a_layer_that_runs_twice_is_an_error_that_names_it(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = decoder_layers(model.model)
    original = layers[2].forward

    def after_another(hidden: Tensor, *args: object, **options: object) -> object:
        return original(layers[1](hidden, *args, **options), *args, **options)

    monkeypatch.setattr(layers[2], "forward", after_another)
    with pytest.raises(SafetyNeuronsError, match=r"Layer 1 .*model\.layers\.1\).* runs 2 times.*allow_partial"):
        find_neurons(model.model)


def test_a_model_without_layers_is_an_error(model: ChatModel) -> None:
    model.model.get_decoder().layers = nn.Sequential(*model.model.get_decoder().layers)
    with pytest.raises(SafetyNeuronsError, match="decoder layers of LlamaForCausalLM were not found"):
        find_neurons(model.model)


def test_going_on_without_a_layer(broken: ChatModel) -> None:
    hook_points, coverage = find_neurons(broken.model, allow_partial=True)
    assert [(hook_point.layer, hook_point.width) for hook_point in hook_points] == [(0, 48), (2, 48)]
    assert (coverage.layers, coverage.layers_total, coverage.neurons, coverage.without_mlp) == (2, 3, 96, 0)
    assert len(coverage.unread) == 1
    assert re.match(r"Layer 1 .* cannot be read: .*down_proj do not add up", coverage.unread[0])
    assert "allow_partial" not in coverage.unread[0]
    assert str(coverage) == "2/3 layers, 96 neurons (PARTIAL: 1 layers are not read)"


def test_a_model_that_can_be_read_is_never_partial(one_of_each: ChatModel) -> None:
    hook_points, coverage = find_neurons(one_of_each.model, allow_partial=True)
    assert coverage == one_of_each.coverage
    assert [hook_point.name for hook_point in hook_points] == [
        hook_point.name for hook_point in one_of_each.hook_points
    ]


def test_nothing_to_go_on_with_is_an_error_also_where_partial_is_allowed(model: ChatModel) -> None:
    for layer in range(3):
        change(model, layer, cubed)
    with pytest.raises(SafetyNeuronsError, match=r"No neurons were found.*Layer 0 .*down_proj do not add up"):
        find_neurons(model.model, allow_partial=True)


def test_neurons_of_a_partly_read_model_are_used_as_any_other(
    broken: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    with pytest.raises(SafetyNeuronsError, match="Layer 1"):
        find(broken, harmful, benign, percent=20)
    partial = replace(broken, allow_partial=True)
    found = find(partial, harmful, benign, percent=20)
    assert found.layers == (0, 2)
    assert [count.layer for count in found.per_layer()] == [0, 2]
    assert "PARTIAL" in found.provenance.coverage
    assert {words.layer for words in explain(partial, found).layers} <= {0, 2}
    before = partial.chat("Hello", max_new_tokens=4)
    with calibrate(partial, found, toward="rejection", alpha=20.0):
        assert partial.chat("Hello", max_new_tokens=4) != before
    assert partial.chat("Hello", max_new_tokens=4) == before


def test_matrices_can_be_named(model: ChatModel) -> None:
    """Raw matrices beside the MLPs cannot be read; the named ones are read all the same."""

    class Beside(RawMLP):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, hidden: Tensor) -> Tensor:
            written: Tensor = self.mlp(hidden)
            return written + super().forward(hidden)

    for layer in decoder_layers(model.model):
        layer.mlp = Beside(layer.get_submodule("mlp"))
    with pytest.raises(SafetyNeuronsError, match=r"Layer 0 .*mlp\.up"):
        find_neurons(model.model)
    hook_points, coverage = find_neurons(model.model, write_matrices=PATTERN)
    assert [hook_point.name for hook_point in hook_points] == [
        f"model.layers.{layer}.mlp.mlp.down_proj" for layer in range(3)
    ]
    assert str(coverage) == "3/3 layers, 144 neurons"
    assert replace(model, write_matrices=PATTERN).coverage == coverage


def test_named_matrices_are_checked_all_the_same(broken: ChatModel) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"Layer 1 .*mlp\.mlp\.down_proj do not add up"):
        find_neurons(broken.model, write_matrices=PATTERN)
    hook_points, coverage = find_neurons(broken.model, write_matrices=PATTERN, allow_partial=True)
    assert [hook_point.layer for hook_point in hook_points] == [0, 2]
    assert len(coverage.unread) == 1


@pytest.mark.parametrize("pattern", ["*.up_proj", "*.self_attn.o_proj", "model.layers.*.mlp.down", "lm_head"])
def test_a_pattern_that_names_no_write_matrix_is_an_error(pattern: str, model: ChatModel) -> None:
    for allow_partial in (False, True):
        with pytest.raises(SafetyNeuronsError, match=r"[Tt]he pattern|No neurons"):
            find_neurons(model.model, write_matrices=pattern, allow_partial=allow_partial)


def test_an_empty_pattern_names_no_write_matrix(model: ChatModel) -> None:
    with pytest.raises(SafetyNeuronsError):
        find_neurons(model.model, write_matrices="")


def test_the_error_about_a_pattern_names_the_pattern(model: ChatModel) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"mlp\.down\b"):
        find_neurons(model.model, write_matrices="model.layers.*.mlp.down")


def test_a_pattern_that_names_nothing_is_an_error_in_a_mixture(make_model: Callable[..., ChatModel]) -> None:
    with pytest.raises(SafetyNeuronsError):
        find_neurons(make_model("mixtral").model, write_matrices="model.layers.*.mlp.down")


def test_layers_that_the_pattern_leaves_out_are_read_as_usual(model: ChatModel) -> None:
    hook_points, coverage = find_neurons(model.model, write_matrices="model.layers.[02].mlp.down_proj")
    assert [hook_point.layer for hook_point in hook_points] == [0, 1, 2]
    assert (coverage.layers, coverage.layers_total, coverage.without_mlp) == (3, 3, 0)
