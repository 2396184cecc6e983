"""PEFT adapters: merged into their base in memory, named in the identity, and never applied without being asked for."""

import contextlib
import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model

from builders.models import drawn_neurons
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models import locate as locating
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import load
from safety_neurons.models.locate import locate
from safety_neurons.neurons.config import FindConfig
from safety_neurons.runs.context import load_model, load_other_model
from safety_neurons.settings import Settings
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.merge import merge
from safety_neurons.tuning.neuron_deltas import empty_delta

TEXT = "Some text to read"
TARGETS = ["down_proj", "q_proj"]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(locating, "installed_parts", lambda package: None)


@pytest.fixture
def base(make_model: Callable[..., ChatModel], tmp_path: Path) -> Path:
    return saved(make_model("llama"), tmp_path / "base")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def saved(model: ChatModel, folder: Path) -> Path:
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def logits(model: ChatModel, adapted: Any = None) -> torch.Tensor:
    with torch.no_grad():
        values = (adapted or model.model)(**model.encode([TEXT])).logits
    assert isinstance(values, torch.Tensor)
    return values.float()


def adapter(model: ChatModel, folder: Path, base: str, config: Any = None, **options: Any) -> torch.Tensor:
    """Write an adapter of random weights; the logits of PEFT's own model."""
    with quiet():
        adapted = get_peft_model(model.model, config or LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if any(part in name for part in ("lora_B", "ia3", "modules_to_save", "magnitude")):
                value.add_(torch.randn_like(value) * 0.2)
    expected = logits(model, adapted)
    adapted.peft_config["default"].base_model_name_or_path = base
    with quiet():
        adapted.save_pretrained(folder, **options)
    said = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(said | {"base_model_name_or_path": base}))
    return expected


def load_here(path: Path | str, **options: Any) -> ChatModel:
    with quiet():
        return load(path, device="cpu", dtype="float32", **options)


KINDS: dict[str, Any] = {
    "lora": LoraConfig(r=4, target_modules=TARGETS),
    "dora": LoraConfig(r=4, target_modules=TARGETS, use_dora=True),
    "rslora": LoraConfig(r=4, target_modules=TARGETS, use_rslora=True),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "embeddings": LoraConfig(r=4, target_modules=[*TARGETS, "embed_tokens"]),
    "head": LoraConfig(r=4, target_modules=[*TARGETS, "lm_head"]),
    "modules to save": LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["embed_tokens", "lm_head"]),
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_loaded_with_its_base_and_merged(
    kind: str, tied: bool, make_model: Callable[..., ChatModel], tmp_path: Path
) -> None:
    model = make_model("llama", tie_word_embeddings=tied)
    model.model.tie_weights()
    base = saved(model, tmp_path / "base")
    before = logits(model)
    expected = adapter(model, tmp_path / "adapter", str(base), KINDS[kind])
    loaded = load_here(tmp_path / "adapter")
    assert torch.allclose(logits(loaded), expected, atol=1e-4)
    assert not torch.allclose(logits(loaded), before, atol=1e-2)
    # A plain model: its neurons are found, it trains, and it can be saved and loaded.
    assert not any("lora" in name or "ia3" in name for name, _ in loaded.model.named_modules())
    assert loaded.coverage.layers == 3
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    again = load_here(saved(loaded, tmp_path / "saved"))
    assert torch.allclose(logits(again), logits(loaded), atol=1e-5)


@pytest.mark.parametrize("whole", [None, ["embed_tokens", "lm_head"]])
def test_new_tokens_of_an_adapter_have_its_embeddings(
    whole: list[str] | None, make_model: Callable[..., ChatModel], base: Path, tmp_path: Path
) -> None:
    model = make_model("llama")
    model.tokenizer.add_tokens(["<new>"])
    model.model.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
    config = LoraConfig(r=4, target_modules=TARGETS, modules_to_save=whole)
    expected = adapter(model, tmp_path / "adapter", str(base), config, save_embedding_layers=True)
    model.tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = load_here(tmp_path / "adapter")
    assert loaded.model.get_input_embeddings().weight.shape[0] == len(model.tokenizer)
    assert torch.equal(loaded.encode(["<new>"])["input_ids"], model.encode(["<new>"])["input_ids"])
    assert torch.allclose(logits(loaded), expected, atol=1e-4)


def test_the_identity_is_that_of_base_and_adapter(model: ChatModel, base: Path, tmp_path: Path) -> None:
    adapter(model, tmp_path / "adapter", str(base))
    identity = load_here(tmp_path / "adapter").identity
    assert identity == locate(str(tmp_path / "adapter")).identity
    assert identity == load_here(base, adapter=tmp_path / "adapter").identity
    assert identity not in (locating.folder_identity(base), locating.folder_identity(tmp_path / "adapter"))
    for path in (base / "model.safetensors", tmp_path / "adapter" / "adapter_model.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        changed = locate(str(tmp_path / "adapter")).identity
        assert changed is not None
        assert changed != identity
        identity = changed


def test_it_is_said(model: ChatModel, base: Path, tmp_path: Path) -> None:
    adapter(model, tmp_path / "adapter", str(base))
    with pytest.warns(UserWarning, match=f"{tmp_path / 'adapter'} is an adapter.*{base}"):
        load(tmp_path / "adapter", device="cpu", dtype="float32")


@pytest.mark.parametrize("place", ["working folder", "beside the adapter", "hub", "preset", "model card"])
def test_where_a_base_is_looked_for(
    place: str, model: ChatModel, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"working folder": "base", "beside the adapter": "../base", "hub": "owner/base", "model card": ""}
    name = names.get(place, "Qwen/Qwen2.5-Coder-0.5B-Instruct")
    expected = adapter(model, tmp_path / "adapter", name)
    if place == "working folder":
        monkeypatch.chdir(tmp_path)
    elif place == "hub":
        cached = tmp_path / "hub" / "models--owner--base"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("c0ffee")
        shutil.copytree(base, cached / "snapshots" / "c0ffee")
    elif place == "model card":
        (tmp_path / "adapter" / "README.md").write_text(f"---\nbase_model: {base}\nlibrary_name: peft\n---\n# Card\n")
    elif place == "preset":
        monkeypatch.setattr(locating, "unpack_preset", lambda *_: base)
    assert torch.allclose(logits(load_here(tmp_path / "adapter")), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["/gone/base", "nobody/base", None])
def test_a_base_that_is_gone_is_named_with_the_way_out(
    name: str | None, model: ChatModel, base: Path, tmp_path: Path
) -> None:
    expected = adapter(model, tmp_path / "adapter", str(name))
    (tmp_path / "adapter" / "README.md").unlink(missing_ok=True)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": name}))
    with pytest.raises(SafetyNeuronsError, match=name or "does not name its base") as caught:
        load_here(tmp_path / "adapter")
    assert str(tmp_path / "adapter") in str(caught.value)
    assert torch.allclose(logits(load_here(base, adapter=tmp_path / "adapter")), expected, atol=1e-4)


def test_an_adapter_that_is_its_own_base_is_an_error(model: ChatModel, tmp_path: Path) -> None:
    adapter(model, tmp_path / "adapter", str(tmp_path / "adapter"))
    with pytest.raises(SafetyNeuronsError, match="another adapter"):
        load_here(tmp_path / "adapter")


def test_an_adapter_beside_a_model_is_used_only_if_asked_for(model: ChatModel, base: Path, tmp_path: Path) -> None:
    before, identity = logits(model), locating.folder_identity(base)
    expected = adapter(model, tmp_path / "adapter", str(base))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "adapter" / file, base / file)
    with pytest.warns(UserWarning, match=f"{base} holds a PEFT adapter beside the model.*not used"):
        ignored = load(base, device="cpu", dtype="float32")
    assert torch.equal(logits(ignored), before)
    assert ignored.identity == identity
    used = load_here(base, adapter=base)
    assert torch.allclose(logits(used), expected, atol=1e-4)
    assert used.identity != identity


def test_the_adapters_tokenizer_and_template_are_used(model: ChatModel, base: Path, tmp_path: Path) -> None:
    adapter(model, tmp_path / "adapter", str(base))
    assert load_here(tmp_path / "adapter").render("Hi") == model.render("Hi")
    (tmp_path / "adapter" / "chat_template.jinja").write_text("Q: {{ messages[0]['content'] }} A:")
    assert load_here(tmp_path / "adapter").render("Hi") == "Q: Hi A:"
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}?"
    model.tokenizer.save_pretrained(tmp_path / "adapter")
    assert load_here(tmp_path / "adapter").render("Hi") == "Hi?"


@pytest.mark.parametrize("change", [{"num_hidden_layers": 2}, {"num_hidden_layers": 4}, {"intermediate_size": 40}])
def test_an_adapter_of_another_model_is_an_error(
    change: dict[str, int], make_model: Callable[..., ChatModel], base: Path, tmp_path: Path
) -> None:
    adapter(make_model("llama", **change), tmp_path / "adapter", str(base))
    with pytest.raises(SafetyNeuronsError, match=f"{tmp_path / 'adapter'} (belongs|does not fit)"):
        load_here(tmp_path / "adapter")


def test_an_adapter_of_another_architecture_is_an_error(
    make_model: Callable[..., ChatModel], base: Path, tmp_path: Path
) -> None:
    config = LoraConfig(r=4, target_modules=["c_fc"], fan_in_fan_out=True)
    adapter(make_model("gpt2"), tmp_path / "adapter", str(base), config)
    with pytest.raises(SafetyNeuronsError, match=r"does not fit the model .*c_fc"):
        load_here(tmp_path / "adapter")


def test_a_prompt_that_was_tuned_cannot_be_merged(model: ChatModel, base: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with quiet():
        peft.get_peft_model(model.model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(SafetyNeuronsError, match="cannot be merged"):
        load_here(base, adapter=tmp_path / "adapter")


def test_without_peft(model: ChatModel, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter(model, tmp_path / "adapter", str(base))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else find(name, *more))
    with pytest.raises(SafetyNeuronsError, match=r"pip install 'safety-neurons\[lora\]'"):
        load_here(tmp_path / "adapter")


@pytest.mark.parametrize("options", [{"quantize": "4bit"}, {"adapter": "."}])
def test_options_that_an_adapter_cannot_have(
    options: dict[str, str], model: ChatModel, base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes") if "quantize" in options else None
    adapter(model, tmp_path / "adapter", str(base))
    with pytest.raises(SafetyNeuronsError, match=str(tmp_path / "adapter")):
        load_here(tmp_path / "adapter", **options)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_folder_that_is_not_an_adapter(file: str, model: ChatModel, base: Path, tmp_path: Path) -> None:
    adapter(model, tmp_path / "adapter", str(base))
    (tmp_path / "adapter" / file).unlink()
    with pytest.raises(SafetyNeuronsError, match=file):
        load_here(base, adapter=tmp_path / "adapter")


def test_a_merged_adapter_can_be_tuned_and_merged(model: ChatModel, base: Path, tmp_path: Path) -> None:
    adapter(model, tmp_path / "adapter", str(base))
    loaded = load_here(tmp_path / "adapter")
    neurons = drawn_neurons(loaded)
    delta = NeuronDelta(neurons, empty_delta(loaded, neurons))
    again = load_here(merge(delta, loaded, tmp_path / "merged", "card"))
    assert torch.allclose(logits(again), logits(loaded), atol=1e-5)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_the_setting_is_for_the_model_and_not_for_the_second_checkpoint(
    model: ChatModel, base: Path, tmp_path: Path
) -> None:
    before = logits(model)
    expected = adapter(model, tmp_path / "adapter", str(base))
    settings = Settings(
        model=str(base),
        adapter=str(tmp_path / "adapter"),
        device="cpu",
        dtype="float32",
        find=FindConfig(other_model=str(base)),
    )
    assert torch.allclose(logits(load_model(settings)), expected, atol=1e-4)
    other = load_other_model(settings)
    assert other is not None
    assert torch.equal(logits(other), before)


@pytest.mark.parametrize("content", ["[]", "{", "version https://git-lfs.github.com/spec/v1"])
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_broken_file_of_an_adapter_is_named(
    file: str, content: str, model: ChatModel, base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "adapter" / file
    adapter(model, path.parent, str(base))
    path.write_text(content)
    for name, options in ((path.parent, {}), (base, {"adapter": path.parent})):
        with pytest.raises(SafetyNeuronsError, match=f"{path}.*(?:Get this file again|git lfs pull)"):
            load_here(name, **options)


def test_a_base_that_is_not_a_name(model: ChatModel, base: Path, tmp_path: Path) -> None:
    adapter(model, tmp_path / "adapter", str(base))
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": 5}))
    with pytest.raises(SafetyNeuronsError, match="does not name its base"):
        load_here(tmp_path / "adapter")
