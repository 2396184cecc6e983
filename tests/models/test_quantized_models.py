"""Packed weights: bitsandbytes' own where it is installed, and a format of our own that always runs."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from builders.quick import explain, find, tune
from safety_neurons.calibration.calibration import calibrate
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import load
from safety_neurons.models.neurons.hook_points import DenseHookPoint
from safety_neurons.tuning.corpus import Corpus, Pair
from safety_neurons.tuning.merge import merge

installed = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (the extra `quantized`)"
)
CORPUS = Corpus((Pair("refusal", "1", "Hello", "", "No."),))


def check_stages(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    """Find, explain, calibrate and tune run."""
    neurons = find(model, harmful, benign, percent=10)
    assert len(neurons)
    assert explain(model, neurons).layers
    text = model.encode([model.render(harmful[0])])
    with torch.no_grad():
        before = model.model(**text).logits[0, -1]
        with calibrate(model, neurons, toward="conformity", alpha=20):
            after = model.model(**text).logits[0, -1]
    assert torch.isfinite(after).all()
    assert not torch.allclose(before, after)
    delta = tune(model, neurons, CORPUS)
    with torch.no_grad():
        with delta.scale(20).apply(model):
            assert not torch.allclose(model.model(**text).logits[0, -1], before)
        assert torch.equal(model.model(**text).logits[0, -1], before)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "phi3"])
def test_weights_in_a_format_of_our_own(
    name: str,
    make_model: Callable[..., ChatModel],
    pack: Callable[[ChatModel], ChatModel],
    harmful: list[str],
    benign: list[str],
) -> None:
    model = pack(make_model(name))
    assert model.coverage == make_model(name).coverage
    for hook_point in model.hook_points:
        assert isinstance(hook_point, DenseHookPoint)
        expected = hook_point.write.unpacked().T  # type: ignore[operator]
        assert torch.allclose(hook_point.raw_write_vectors(), expected, atol=1e-6)
        some = torch.tensor([3, 0, hook_point.width - 1])
        assert torch.allclose(hook_point.raw_write_vectors(some), expected[some], atol=1e-6)
    check_stages(model, harmful, benign)


def test_a_hook_may_ask_for_the_write_vectors_while_the_matrix_runs(
    make_model: Callable[..., ChatModel], pack: Callable[[ChatModel], ChatModel]
) -> None:
    hook_point = pack(make_model()).hook_points[0]
    seen = []
    with hook_point.hooked(lambda activations: seen.append(hook_point.raw_write_vectors())):
        hook_point.write(torch.zeros(1, hook_point.width))  # type: ignore[attr-defined]
    assert len(seen) == 1


def test_a_delta_cannot_be_merged_into_packed_weights(
    make_model: Callable[..., ChatModel],
    pack: Callable[[ChatModel], ChatModel],
    harmful: list[str],
    benign: list[str],
    tmp_path: Path,
) -> None:
    plain = make_model()
    delta = tune(plain, find(plain, harmful, benign, percent=5), CORPUS)
    with pytest.raises(SafetyNeuronsError, match="quantized"):
        merge(delta, pack(make_model()), tmp_path / "merged", "")
    assert not (tmp_path / "merged").exists()


def test_without_bitsandbytes_the_error_says_how_to_get_it(
    model: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else original(name))
    with pytest.raises(SafetyNeuronsError, match=r"4bit needs bitsandbytes.*safety-neurons\[quantized\]"):
        load(tmp_path, quantize="4bit")
    with pytest.raises(SafetyNeuronsError, match="3bit"):
        load(tmp_path, quantize="3bit")


SIZES: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


@pytest.fixture(params=["LlamaConfig", "Gemma2Config", "MixtralConfig"])
def folder(request: pytest.FixtureRequest, model: ChatModel, tmp_path: Path) -> Path:
    """A model whose sizes bitsandbytes can pack on CPUs, with activations on both sides of its outlier threshold."""
    torch.manual_seed(0)
    extra = {"num_local_experts": 4} if "Mixtral" in request.param else {}
    config = getattr(transformers, request.param)(**SIZES, **extra)
    other = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    other.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@installed
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bitsandbytes(quantize: str, dtype: str, folder: Path, harmful: list[str], benign: list[str]) -> None:
    plain = load(folder, device="cpu", dtype=dtype)
    model = load(folder, device="cpu", dtype=dtype, quantize=quantize)
    assert model.parameters == plain.parameters
    expected = {hook_point: dequantized(hook_point) for hook_point in model_writes(model)}
    assert model.coverage == plain.coverage
    for hook_point, weight in expected.items():
        dense = DenseHookPoint(0, "site", weight.shape[0], hook_point)
        found = dense.raw_write_vectors()
        # On CPUs bitsandbytes keeps the scales of 4-bit blocks in bfloat16.
        assert (found - weight).norm() < 4e-3 * weight.norm()
    check_stages(model, harmful, benign)


def model_writes(model: ChatModel) -> list[nn.Linear]:
    return [
        module
        for name, module in model.model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith("mlp.down_proj")
    ]


def dequantized(module: Any) -> Tensor:
    """By bitsandbytes itself, before it reorders the weight at the first run on a CPU: [inputs, outputs]."""
    import bitsandbytes

    if isinstance(module, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float().T
    scale = module.weight.SCB if module.state.SCB is None else module.state.SCB
    return (module.weight.data.float() * scale.view(-1, 1) / 127).T


@installed
@pytest.mark.parametrize("threshold", [0.0, 0.5, 6.0])
def test_units_pushed_through_8_bit_matrices_are_its_weight(threshold: float) -> None:
    """Also where a unit is larger than the threshold above which inputs are not rounded."""
    import bitsandbytes

    from safety_neurons.models.neurons.hook_points import _probe

    torch.manual_seed(0)
    plain = nn.Linear(64, 96)
    module = bitsandbytes.nn.Linear8bitLt(64, 96, has_fp16_weights=False, threshold=threshold)
    module.load_state_dict(plain.state_dict())
    module = module.to("cpu")
    module(torch.zeros(1, 64))
    assert torch.allclose(
        _probe(module, 64, None), dequantized(module), atol=1e-3 * float(plain.weight.detach().abs().max())
    )
