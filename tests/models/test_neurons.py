"""Where the neurons are: on every architecture, against what its configuration and its arithmetic say."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons import find_neurons
from safety_neurons.models.sites import NeuronSite, rows_by_neuron, rows_by_output
from safety_neurons.models.trace import decoder_layers

LAYERS, WIDTH, HIDDEN = 3, 48, 32
TOKENS = torch.tensor([[7, 40, 21, 99, 180, 13, 60]])
POST_NORM = {"gemma2", "gemma3", "olmo2"}
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def shake(model: nn.Module) -> None:
    """Give biases and the gains of norms values of their own: a fresh model has only zeros and ones there."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.fixture
def shaken(any_model: ChatModel) -> ChatModel:
    shake(any_model.model)
    return any_model


def architecture(model: ChatModel) -> str:
    return model.name.removeprefix("tiny-")


def hooks_left(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


def first(output: Any) -> Tensor:
    value = output if isinstance(output, Tensor) else output[0]
    assert isinstance(value, Tensor)
    return value.detach().reshape(-1, HIDDEN)


@contextlib.contextmanager
def recorded(model: ChatModel, site: NeuronSite, silence: bool = False) -> Iterator[dict[str, Tensor]]:
    """One layer's activations, its raw write and the layer's output while the context is open."""
    found: dict[str, Tensor] = {}

    def activations(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        found["activations"] = args[0].detach().reshape(-1, site.width)
        return (torch.zeros_like(args[0]),) if silence else None

    def write(_module: nn.Module, _args: Any, output: Any) -> None:
        found["write"] = first(output)

    def layer(_module: nn.Module, _args: Any, output: Any) -> None:
        found["layer"] = first(output)

    handles = [
        site.write.register_forward_pre_hook(activations),
        site.write.register_forward_hook(write),
        decoder_layers(model.model)[site.layer].register_forward_hook(layer),
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def run(model: ChatModel, site: NeuronSite, silence: bool = False) -> dict[str, Tensor]:
    with torch.no_grad(), recorded(model, site, silence) as found:
        model.model(input_ids=TOKENS, use_cache=False)
    return found


def test_every_layer_and_every_neuron_is_read(any_model: ChatModel) -> None:
    coverage = any_model.coverage
    assert (coverage.layers, coverage.layers_total, coverage.neurons) == (LAYERS, LAYERS, LAYERS * WIDTH)
    assert str(coverage) == "3/3 layers, 144 neurons"
    assert [site.layer for site in any_model.sites] == list(range(LAYERS))
    assert {site.width for site in any_model.sites} == {WIDTH}
    assert len({site.write for site in any_model.sites}) == LAYERS


def test_names_lead_to_the_modules(any_model: ChatModel) -> None:
    for site in any_model.sites:
        assert any_model.model.get_submodule(site.name) is site.write
        for read in site.reads:
            assert any_model.model.get_submodule(read.name) is read.module


def test_post_norm_is_noticed_where_there_is_one(any_model: ChatModel) -> None:
    assert {site.post_norm for site in any_model.sites} == {architecture(any_model) in POST_NORM}


def test_the_write_is_the_sum_of_the_neurons_contributions(shaken: ChatModel) -> None:
    for site in shaken.sites:
        found = run(shaken, site)
        bias = getattr(site.write, "bias", None)
        write = found["write"] - (0 if bias is None else bias.detach())
        name = architecture(shaken)
        if name == "granite":
            write = write * 0.3
        elif name in POST_NORM:
            layer = decoder_layers(shaken.model)[site.layer]
            weight = layer.get_submodule("post_feedforward_layernorm").get_parameter("weight").detach()
            write = write * (weight if name == "olmo2" else 1 + weight)
        vectors = site.write_vectors()
        summed = torch.zeros_like(write)
        for neuron in range(site.width):
            summed += found["activations"][:, neuron, None] * vectors[neuron]
        torch.testing.assert_close(summed, write, rtol=1e-3, atol=1e-4)


def test_the_contributions_are_what_the_layer_loses_without_its_neurons(shaken: ChatModel) -> None:
    for site in shaken.sites:
        full, silenced = run(shaken, site), run(shaken, site, silence=True)
        expected = full["activations"] @ site.write_vectors()
        if site.post_norm:
            expected = expected / full["write"].pow(2).mean(1, keepdim=True).add(1e-6).sqrt()
        torch.testing.assert_close(full["layer"] - silenced["layer"], expected, rtol=1e-3, atol=1e-3)
        assert expected.norm() > 0.1


def test_write_vectors_of_some_neurons_are_their_rows(shaken: ChatModel) -> None:
    chosen = torch.tensor([40, 3, 17])
    for site in shaken.sites:
        everything = site.write_vectors()
        assert everything.shape == (WIDTH, HIDDEN)
        assert everything.dtype == torch.float32
        assert not everything.requires_grad
        assert torch.equal(site.write_vectors(chosen), everything[chosen])


def test_row_of_a_read_matrix_feeds_one_neuron(shaken: ChatModel) -> None:
    neuron = 5
    for site in shaken.sites:
        before = run(shaken, site)["activations"]
        for read in site.reads:
            row = rows_by_output(read.module)[read.offset + neuron]
            with torch.no_grad():
                row.neg_()
            after = run(shaken, site)["activations"]
            with torch.no_grad():
                row.neg_()
            moved = (before != after).any(0).nonzero().flatten().tolist()
            assert moved == [neuron], (read.name, read.offset)


def test_row_of_the_write_matrix_is_a_view_of_the_weight(
    model: ChatModel, make_model: Callable[..., ChatModel]
) -> None:
    for chosen in (model, make_model("gpt2")):
        site = chosen.sites[1]
        before = run(chosen, site)
        with torch.no_grad():
            rows_by_neuron(site.write)[8] += 1
        after = run(chosen, site)
        expected = before["activations"][:, 8, None].expand(-1, HIDDEN)
        torch.testing.assert_close(after["write"] - before["write"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("llama", [("gate_proj", 0), ("up_proj", 0)]),
        ("phi3", [("gate_up_proj", 0), ("gate_up_proj", WIDTH)]),
        ("gpt2", [("c_fc", 0)]),
        ("opt", [("fc1", 0)]),
        ("gpt_neox", [("dense_h_to_4h", 0)]),
    ],
)
def test_reads(name: str, reads: list[tuple[str, int]], make_model: Callable[..., ChatModel]) -> None:
    for site in make_model(name).sites:
        assert [(read.name.rsplit(".", 1)[1], read.offset) for read in site.reads] == reads


def test_parameters_per_neuron_add_up_to_the_mlps_parameters(any_model: ChatModel) -> None:
    for site in any_model.sites:
        modules = {site.write, *(read.module for read in site.reads)}
        total = sum(parameter.numel() for module in modules for parameter in module.parameters())
        bias = getattr(site.write, "bias", None)
        # The bias of the write matrix belongs to no neuron.
        assert site.parameters_per_neuron * WIDTH == total - (0 if bias is None else bias.numel())
    plain = architecture(any_model) in {"gpt2", "gpt_neox", "opt"}
    assert any_model.sites[0].parameters_per_neuron == (2 * HIDDEN + 1 if plain else 3 * HIDDEN)


def test_finding_leaves_the_model_as_it_was(any_model: ChatModel) -> None:
    with torch.no_grad():
        before = any_model.model(input_ids=TOKENS).logits
        assert len(any_model.sites) == LAYERS
        assert hooks_left(any_model.model) == []
        assert torch.equal(any_model.model(input_ids=TOKENS).logits, before)


@pytest.mark.parametrize("call", range(5))
def test_an_exception_at_any_call_of_the_mlp_leaves_no_hook(
    call: int, model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trace, the run with and without neurons, and one run for each of the two reads."""
    mlp = decoder_layers(model.model)[0].mlp
    assert isinstance(mlp, nn.Module)
    original, calls = mlp.forward, 0

    def failing(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise RuntimeError("power cut")
        return original(*args, **kwargs)

    monkeypatch.setattr(mlp, "forward", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        find_neurons(model.model)
    assert hooks_left(model.model) == []


@pytest.mark.parametrize(
    ("config_class", "options"),
    [
        ("MixtralConfig", {"num_local_experts": 4}),
        (
            "Qwen2MoeConfig",
            {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        ),
        ("MambaConfig", {}),
        # The norm follows the residual sum: what the neurons write is divided by something that depends on it.
        ("OPTConfig", {"ffn_dim": WIDTH, "word_embed_proj_dim": HIDDEN, "do_layer_norm_before": False}),
    ],
)
def test_architectures_that_cannot_be_read_are_an_error_that_names_the_layer(
    config_class: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**(SMALL | options))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    with pytest.raises(SafetyNeuronsError, match=r"Layer 0 of \w+ \(.*layers\.0\)"):
        find_neurons(model)
    assert hooks_left(model) == []


def test_a_weight_that_nothing_reads_is_an_error_that_names_it(model: ChatModel) -> None:
    decoder_layers(model.model)[1].register_parameter("extra", nn.Parameter(torch.zeros(4, 4)))
    with pytest.raises(SafetyNeuronsError, match=r"Layer 1 .*extra"):
        find_neurons(model.model)


def test_layers_that_are_not_as_many_as_the_configuration_says_are_an_error(model: ChatModel) -> None:
    model.model.config.num_hidden_layers = 7
    with pytest.raises(SafetyNeuronsError, match="decoder layers"):
        find_neurons(model.model)


def test_a_neuron_that_never_fires_is_no_reason_to_refuse_the_model(make_model: Callable[..., ChatModel]) -> None:
    """ReLU models have many such neurons: the one that is tried may be one of them."""
    model = make_model("opt")
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name.endswith("fc1.bias"):
                parameter[::2] = -20
    assert model.coverage.neurons == LAYERS * WIDTH


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_pass_the_check(dtype: torch.dtype, any_model: ChatModel) -> None:
    any_model.model.to(dtype)
    assert any_model.coverage.neurons == LAYERS * WIDTH
    assert any_model.sites[0].write_vectors().dtype == torch.float32
