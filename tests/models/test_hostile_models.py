"""Models, adapters and GGUF files from strangers: nothing of them runs, and whatever is wrong is told at once."""

import base64
import copy
import functools
import json
import os
import shutil
import struct
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hostile_models import DAMAGES, NUMBERS, set_value, weights_that, with_header, write_code, write_pickle
from peft import LoraConfig, get_peft_model

from builders.children import outcome
from builders.gguf_files import write_gguf
from builders.models import tiny_model
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models import locate as locating
from safety_neurons.models import unpacked
from safety_neurons.models.growth import check_growth
from safety_neurons.models.load import load

SECONDS = 90


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(locating, "installed_parts", lambda package: None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("saved") / "model", tiny_model()
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved_adapter(saved: Path) -> Path:
    folder = saved.parent / "adapter"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(
            tiny_model().model, LoraConfig(r=4, target_modules=["down_proj"], task_type="CAUSAL_LM")
        )
        adapted.peft_config["default"].base_model_name_or_path = "../model"
        adapted.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(folder: Path, saved_adapter: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved_adapter, tmp_path / "adapter")
    return tmp_path / "adapter"


def use(path: Path, **options: Any) -> None:
    """Load, render, tokenize and answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(path, device="cpu", dtype="float32", **options)
    assert model.template_tail >= 0
    model.chat("Hello", max_new_tokens=2)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(SafetyNeuronsError) as caught:
        use(path, **options)
    return str(caught.value)


def damaged(damage: Callable[[Path], object], file: str, work: Path) -> None:
    damage(work / file)


def numbered(key: str, number: object, work: Path) -> None:
    set_value(work / "config.json", key, number)


def headed(change: Callable[[dict[str, Any]], Any], work: Path) -> None:
    with_header(work / "model.safetensors", change)


def each_way(original: Path, work: Path, ways: Mapping[str, Callable[[Path], object]], used: Path | None = None) -> str:
    """What is wrong with how a model that was changed in each of these ways is read; empty if nothing is."""

    def run() -> None:
        wrong = []
        for name, change in ways.items():
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(original, work)
            change(work)
            try:
                use(used or work)
            except SafetyNeuronsError as error:
                if str(work) not in str(error):
                    wrong.append(f"{name}: the file is not named: {error}")
            except Exception as error:  # noqa: BLE001 (whatever it is, it is reported)
                wrong.append(f"{name}: {type(error).__name__}: {error}")
        if wrong:
            raise RuntimeError("\n".join(wrong))

    said = outcome(run, SECONDS)
    return "" if said == "done" else said


@pytest.mark.parametrize(
    "file",
    [
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    ],
)
def test_every_damage_of_every_file_is_read_or_told(file: str, saved: Path, tmp_path: Path) -> None:
    ways = {name: functools.partial(damaged, damage, file) for name, damage in DAMAGES.items()}
    assert each_way(saved, tmp_path / "damaged", ways) == ""


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "README.md"])
def test_every_damage_of_an_adapter_is_read_or_told(
    file: str, folder: Path, saved_adapter: Path, tmp_path: Path
) -> None:
    ways = {name: functools.partial(damaged, damage, file) for name, damage in DAMAGES.items()}
    assert each_way(saved_adapter, tmp_path / "adapter", ways) == ""


def test_every_damage_of_a_gguf_file_is_told(tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    write_gguf(tiny_model("qwen2"), original / "tiny.gguf")
    work = tmp_path / "work"
    ways: dict[str, Callable[[Path], object]] = {
        name: functools.partial(damaged, damage, "tiny.gguf") for name, damage in DAMAGES.items()
    }
    for place, what in ((8, "tensors"), (16, "fields")):
        for count in (1 << 20, 1 << 40, (1 << 64) - 1):
            ways[f"{count} {what}"] = functools.partial(patched, place, count)
    assert each_way(original, work, ways, work / "tiny.gguf") == ""


def patched(place: int, count: int, work: Path) -> None:
    path = work / "tiny.gguf"
    content = bytearray(path.read_bytes())
    content[place : place + 8] = struct.pack("<Q", count)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "key",
    [
        *("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "head_dim", "rms_norm_eps", "rope_parameters.rope_theta"),
        *("eos_token_id", "pad_token_id", "model_type", "text_config.num_hidden_layers"),
    ],
)
def test_every_number_of_a_config_is_bounded(key: str, saved: Path, tmp_path: Path) -> None:
    ways = {f"{key}={number!s:.20}": functools.partial(numbered, key, number) for number in NUMBERS}
    said = each_way(saved, tmp_path / "work", ways)
    # What the network computes with such numbers is told of the network, not of its files.
    lines = [line for line in said.splitlines() if "No neurons were found" not in line]
    assert said == "" or all("the file is not named" not in line and "Traceback" not in line for line in lines[:-1])


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral", "gemma3"])
@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "n_layer", "num_local_experts", "n_positions", "max_position_embeddings", "vocab_size"]
)
def test_huge_numbers_are_refused_in_other_architectures(architecture: str, key: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    if not hasattr(model.model.config, key):
        pytest.skip("another architecture's name")
    for number in (10**6, 10**9):
        set_value(tmp_path / "model" / "config.json", key, number)
        said = outcome(lambda: use(tmp_path / "model"), SECONDS)
        assert said.startswith("error: ") or (said == "done" and key == "max_position_embeddings"), said


def test_a_config_in_a_config_is_checked_too(folder: Path) -> None:
    set_value(folder / "config.json", "text_config.inside.num_hidden_layers", 10**9)
    assert "text_config.inside.num_hidden_layers is 1,000,000,000" in refusal(folder)


def test_building_stops_once_the_model_outgrows_its_weights(folder: Path) -> None:
    """No single number is out of bounds, and their product is."""
    set_value(folder / "config.json", "hidden_size", 1 << 30)
    assert "more than" in refusal(folder)
    set_value(folder / "config.json", "hidden_size", 32)
    set_value(folder / "config.json", "num_hidden_layers", 1000)
    message = refusal(folder)
    assert str(folder) in message
    assert "more than" in message or "missing" in message


def test_infinity_in_a_config_is_no_error(folder: Path) -> None:
    set_value(folder / "config.json", "time_step_limit", [0.0, float("inf")])
    use(folder)


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "past the end": lambda header: first(header).update(data_offsets=[0, 1 << 50]),
    "overlapping": lambda header: first(header).update(data_offsets=second(header)["data_offsets"]),
    "backwards": lambda header: first(header).update(data_offsets=[100, 0]),
    "a shape too large": lambda header: first(header).update(shape=[1 << 40, 1 << 40]),
    "a negative shape": lambda header: first(header).update(shape=[-1]),
    "an unknown type": lambda header: first(header).update(dtype="F128"),
    "no shape": lambda header: first(header).pop("shape") and None,
    "twice": lambda header: json.dumps(header)[:-1] + "," + json.dumps(header)[1:],
    "no object": lambda header: "[]",
    "many": lambda header: header.update(
        {f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(50_000)}
    ),
}


def first(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(value for name, value in header.items() if name != "__metadata__")
    return found


def second(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = [value for name, value in header.items() if name != "__metadata__"][1]
    return found


def test_headers_that_lie_are_told(saved: Path, tmp_path: Path) -> None:
    ways = {name: functools.partial(headed, change) for name, change in HEADERS.items()}
    assert each_way(saved, tmp_path / "work", ways) == ""


def test_a_header_of_a_terabyte_is_told(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])
    assert "model.safetensors is broken" in refusal(folder)


def test_a_file_of_holes_is_told_before_it_is_read(folder: Path) -> None:
    path = folder / "model.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 28], "data_offsets": [0, 1 << 30]}}).encode()
    path.unlink()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + (1 << 30))
    assert "model.safetensors says that it has" in refusal(folder)


def test_weights_that_are_not_numbers_are_told(folder: Path) -> None:
    weights_that(
        folder / "model.safetensors", lambda tensors: {name: value * float("nan") for name, value in tensors.items()}
    )
    assert "not finite" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/tmp/other.safetensors", "sub/x.safetensors", "x.bin", "", "."]
)
def test_an_index_names_files_of_its_own_folder_only(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    write_pickle(folder / "x.bin", tmp_path / "ran")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"names {name!r} as a file with weights" in refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_links_of_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for path in folder.iterdir():
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(os.path.relpath(tmp_path / "blobs" / path.name, folder))
    use(folder)


def test_a_tokenizer_that_makes_texts_huge_is_refused(folder: Path) -> None:
    replaced = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    set_value(folder / "tokenizer.json", "normalizer", {"type": "Sequence", "normalizers": [replaced] * 40})
    assert "tokenizer.json has a normalizer" in refusal(folder)
    set_value(folder / "tokenizer.json", "normalizer", {"type": "Sequence", "normalizers": [replaced] * 3})
    use(folder)


def charsmap(text: str) -> str:
    """A map of SentencePiece that puts a text in place of the letter a: a trie of 1,024 words, then the text."""
    trie = [256 << 10, *[0] * 1023]
    trie[0x161] = 0x61 | 1 << 8 | 1 << 10
    words = struct.pack("<1024I", *trie)
    return base64.b64encode(struct.pack("<I", len(words)) + words + text.encode() + b"\0").decode()


GROWING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "map of characters": ("normalizer", "Precompiled", {"precompiled_charsmap": charsmap("a" * 1000)}),
    "prefix": ("normalizer", "Prepend", {"prepend": "a" * 1000}),
    "empty match": ("normalizer", "Replace", {"pattern": {"Regex": "(?=.)"}, "content": "a" * 1000}),
    "bytes": ("pre_tokenizer", "ByteLevel", {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}),
    "decoder": ("decoder", "Replace", {"pattern": {"String": "a"}, "content": "a" * 1000}),
}


@pytest.mark.parametrize("name", GROWING)
def test_every_part_that_makes_texts_longer_counts(folder: Path, name: str) -> None:
    part, kind, options = GROWING[name]
    inside = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[part]
    one = {"type": kind} | options
    set_value(folder / "tokenizer.json", part, {"type": "Sequence", inside: [one] * 7})
    assert f"tokenizer.json has a {part} that makes a text" in refusal(folder)
    check_growth(folder / "tokenizer.json", {part: one})


def test_tokenizers_of_known_models_grow_little() -> None:
    albert = [
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
        {"type": "NFKD"},
        {"type": "StripAccents"},
        {"type": "Lowercase"},
        {"type": "Precompiled", "precompiled_charsmap": charsmap("a" * 18)},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]
    written = {"normalizer": {"type": "Sequence", "normalizers": albert}, "pre_tokenizer": {"type": "Metaspace"}}
    check_growth(Path("tokenizer.json"), written)


def test_a_map_of_characters_that_is_not_base64_is_told(folder: Path) -> None:
    set_value(folder / "tokenizer.json", "normalizer", {"type": "Precompiled", "precompiled_charsmap": "a"})
    assert "tokenizer.json has a Precompiled normalizer whose map is not base64" in refusal(folder)


def test_a_pattern_that_never_ends_is_told(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a|a|b|H|e|l|o|<|>|[a-z]|[^q])+$q"},
        "behavior": "Isolated",
        "invert": False,
    }
    set_value(folder / "tokenizer.json", "pre_tokenizer", split)
    assert outcome(lambda: use(folder), SECONDS) in ("done",) or "tokenizer" in outcome(lambda: use(folder), SECONDS)


# Settings that name code of the folder, of a repository or of a module, by file.
AUTO_MAP = {
    "AutoConfig": "hostile.HostileConfig",
    "AutoModelForCausalLM": "hostile.HostileModel",
    "AutoTokenizer": ["hostile.HostileTokenizer", "hostile.HostileTokenizer"],
}
CODE: dict[str, tuple[str, str, Any]] = {
    "auto_map": ("config.json", "auto_map", AUTO_MAP),
    "auto_map of another type": ("config.json", "model_type", "hostile"),
    "auto_map of the tokenizer": ("tokenizer_config.json", "auto_map", AUTO_MAP),
    "auto_map for generation": ("generation_config.json", "auto_map", AUTO_MAP),
    "custom_generate": ("generation_config.json", "custom_generate", "."),
    "tokenizer class": ("tokenizer_config.json", "tokenizer_class", "hostile.HostileTokenizer"),
    "tokenizer of a module": ("tokenizer_config.json", "tokenizer_class", "os.system"),
    "attention": ("config.json", "_attn_implementation", "./hostile"),
    "attention of the hub": ("config.json", "attn_implementation", "kernels-community/flash-attn"),
    "attention inside": ("config.json", "text_config.attn_implementation", "nobody/kernel:run"),
    "attention of a part": ("config.json", "attn_implementation", {"text_config": "nobody/kernel"}),
    "quantization": ("config.json", "quantization_config", {"quant_method": "hostile", "modules": "hostile.py"}),
    "quantization by kernels": ("config.json", "quantization_config", {"quant_method": "gptq", "bits": 4}),
    "use_kernels": ("config.json", "use_kernels", True),
    "weights by name": ("config.json", "transformers_weights", "pytorch_model.bin"),
    "vocabulary": ("tokenizer_config.json", "vocab_file", "pytorch_model.bin"),
}


@pytest.mark.parametrize("name", CODE)
def test_nothing_of_a_model_runs(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    monkeypatch.chdir(folder)
    for file in ("hostile.py", "custom_generate/generate.py", "build/torch-universal/hostile/__init__.py"):
        write_code(folder, marker, file)
    for file in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin", "tokenizer.pkl"):
        write_pickle(folder / file, marker)
    set_value(folder / "config.json", "auto_map", AUTO_MAP)
    set_value(folder / CODE[name][0], *CODE[name][1:])
    said = outcome(lambda: use(folder), SECONDS)
    assert said == "done" or said.startswith("error: "), said
    assert not marker.exists()


def test_what_runs_by_permission_is_said_before_it_runs(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    write_code(folder, marker)
    set_value(folder / "config.json", "auto_map", {"AutoConfig": "hostile.HostileConfig"})
    set_value(folder / "tokenizer_config.json", "auto_map", {"AutoTokenizer": ["nobody/code--other.Tokenizer", None]})
    before = []

    def note(message: Any, *args: Any, **options: Any) -> None:
        if "trust_remote_code" in str(message):
            before.append((str(message), marker.exists()))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(warnings, "warn", note)
        with pytest.raises(SafetyNeuronsError):
            load(folder, device="cpu", trust_remote_code=True)
    ((said, ran),) = before
    assert not ran
    assert str(folder) in said
    assert "hostile.py" in said
    assert "the repository nobody/code" in said


ADAPTERS: dict[str, tuple[str, Any]] = {
    "a module": ("megatron_config", {"a": 1}),
    "a module by name": ("megatron_core", "hostile"),
    "other adapters": ("adapters", {"0": "nobody/adapter"}),
    "an endless pattern": ("target_modules", "(a+)+$"),
    "an endless pattern of ranks": ("rank_pattern", {"(.*)*x": 8}),
    "a huge rank": ("r", 10**9),
    "a huge rank of one": ("rank_pattern", {"down_proj": 10**9}),
    "no rank": ("r", 0),
    "a rank that is a text": ("r", "x"),
    "another kind": ("peft_type", "XLORA"),
    "an unknown kind": ("peft_type", "os.system"),
    "a mapping": ("auto_mapping", {"base_model_class": "Hostile", "parent_library": "hostile"}),
    "custom modules": ("custom_modules", {"Linear": "hostile.HostileModel"}),
    "files of covariances": (
        "corda_config",
        {"cache_file": "adapter_model.bin", "covariance_file": "adapter_model.bin"},
    ),
    "initialised by files": ("init_lora_weights", "corda"),
    "initialised by eva": ("init_lora_weights", "eva"),
    "initialised by loftq": ("init_lora_weights", "loftq"),
    "another base": ("base_model_name_or_path", "nobody/with-code"),
    "itself": ("base_model_name_or_path", "."),
    "a base that is a number": ("base_model_name_or_path", 5),
    "a base with NUL": ("base_model_name_or_path", "a\0b"),
    "a revision": ("revision", "../../x"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_nothing_of_an_adapter_runs(name: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    write_code(adapter, marker)
    monkeypatch.chdir(adapter)
    monkeypatch.syspath_prepend(adapter)
    for file in ("adapter_model.bin", "training_args.bin"):
        write_pickle(adapter / file, marker)
    set_value(adapter / "adapter_config.json", *ADAPTERS[name])
    said = outcome(lambda: use(adapter), SECONDS)
    assert said == "done" or (said.startswith("error: ") and str(adapter) in said), said
    assert not marker.exists()


def test_an_adapter_of_another_model_is_told(adapter: Path) -> None:
    weights_that(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name.replace("layers.0", "layers.9"): value for name, value in tensors.items()},
    )
    assert "belongs to another model" in refusal(adapter)


def test_a_damaged_unpacked_model_is_unpacked_again(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_model("qwen2"), path)
    folder, sha256 = locating.unpack_gguf(path)
    whole = (folder / "model.safetensors").read_bytes()
    for damage in ("empty", "flipped bits", "missing", "pipe", "folder"):
        DAMAGES[damage](folder / "model.safetensors")
        assert not unpacked.is_unpacked(folder)
        assert locating.unpack_gguf(path) == (folder, sha256)
        assert (folder / "model.safetensors").read_bytes() == whole
    (folder / unpacked.RECORD).unlink()
    assert locating.unpack_gguf(path)[0] == folder
    assert unpacked.is_unpacked(folder)


def test_what_a_killed_process_left_is_removed_at_the_next_use(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_model("qwen2"), path)

    def killed(*_args: object) -> None:
        os.kill(os.getpid(), 9)

    def unpack() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("safety_neurons.models.gguf_files.record", killed)
            locating.unpack_gguf(path)

    assert outcome(unpack) == "killed"
    (left,) = (tmp_path / "cache" / "unpacked").iterdir()
    folder, _ = locating.unpack_gguf(path)
    assert not left.exists()
    assert [each.name for each in (tmp_path / "cache" / "unpacked").iterdir()] == [folder.name]


def test_two_that_unpack_at_once_do_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_model("qwen2"), path)
    converted, found = [], []
    convert = copy.copy(locating.convert)

    def counted(*args: Any) -> Path:
        converted.append(args)
        return convert(*args)

    monkeypatch.setattr(locating, "convert", counted)
    threads = [threading.Thread(target=lambda: found.append(locating.unpack_gguf(path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(converted) == 1
    assert torch.isfinite(load(path, device="cpu").model.get_input_embeddings().weight).all()
