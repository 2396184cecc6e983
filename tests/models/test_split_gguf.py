"""Split GGUF files: all parts are read, whichever is named, and a weight too few or too many is an error."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy
import pytest
import torch

from builders.gguf_files import Weights, write_gguf
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models import gguf_files
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import load
from safety_neurons.models.locate import locate


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def qwen2(make_model: Callable[..., ChatModel]) -> ChatModel:
    return make_model("qwen2")


@pytest.fixture
def parts(qwen2: ChatModel, tmp_path: Path) -> list[Path]:
    found = write_gguf(qwen2, tmp_path / "tiny.gguf", tensors_a_part=15)
    assert [path.name for path in found] == [f"tiny-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    return found


def unpacked(cache: Path) -> list[str]:
    folder = cache / "unpacked"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_all_parts_are_read_whichever_is_named(qwen2: ChatModel, parts: list[Path], cache: Path) -> None:
    loaded = load(parts[0], device="cpu", dtype="float32")
    expected = qwen2.model.to(torch.bfloat16).float().state_dict()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert loaded.render("Hi") == qwen2.render("Hi")
    assert {locate(str(part)).identity for part in parts} == {loaded.identity}
    assert len(unpacked(cache)) == 1


def test_the_identity_is_that_of_all_parts(parts: list[Path]) -> None:
    before = locate(str(parts[0])).identity
    content = bytearray(parts[2].read_bytes())
    content[-1] ^= 1
    parts[2].write_bytes(content)
    assert locate(str(parts[0])).identity != before


@pytest.mark.parametrize("missing", [(0,), (1,), (2,), (1, 2)])
def test_missing_parts_are_named(missing: tuple[int, ...], parts: list[Path], cache: Path) -> None:
    for number in missing:
        parts[number].unlink()
    left = next(part for part in parts if part.exists())
    with pytest.raises(SafetyNeuronsError, match=r"one of the 3 parts of a model.* lacks tiny") as caught:
        locate(str(left))
    assert all((part.name in str(caught.value)) == (not part.exists() or part == left) for part in parts)
    assert unpacked(cache) == []


def test_a_part_with_the_name_of_another_is_an_error(parts: list[Path], cache: Path) -> None:
    content = [part.read_bytes() for part in parts]
    parts[1].write_bytes(content[2])
    parts[2].write_bytes(content[1])
    with pytest.raises(SafetyNeuronsError, match="is not part 2 of 3"):
        locate(str(parts[0]))
    assert unpacked(cache) == []


@pytest.mark.parametrize("number", [0, 1])
def test_a_part_with_a_name_of_its_own_is_an_error(number: int, parts: list[Path], tmp_path: Path, cache: Path) -> None:
    alone = parts[number].rename(tmp_path / "model.gguf")
    with pytest.raises(
        SafetyNeuronsError, match=rf"part {number + 1} of a model .* split into 3 files|not a GGUF file"
    ):
        locate(str(alone))
    assert unpacked(cache) == []


def test_a_part_that_was_cut_off_is_an_error(parts: list[Path], cache: Path) -> None:
    parts[1].write_bytes(parts[1].read_bytes()[:-1000])
    with pytest.raises(SafetyNeuronsError, match=r"tiny-00001-of-00003\.gguf"):
        locate(str(parts[0]))
    assert unpacked(cache) == []


def test_what_an_older_version_unpacked_is_not_used(parts: list[Path], tmp_path: Path, cache: Path) -> None:
    """It did not look for missing weights, and kept what it had initialized randomly."""
    alone = parts[0].rename(tmp_path / "model.gguf")
    (cache / "models" / hashlib.sha256(alone.read_bytes()).hexdigest()[:16]).mkdir(parents=True)
    with pytest.raises(SafetyNeuronsError, match="split into 3 files"):
        locate(str(alone))


def without_a_layer(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if not name.startswith("blk.1.")}


def with_another_layer(weights: Weights) -> Weights:
    return weights | {name.replace("blk.2.", "blk.3."): value for name, value in weights.items()}


def renamed(weights: Weights) -> Weights:
    return {name.replace("ffn_down", "ffn_other"): value for name, value in weights.items()}


def with_a_bias(weights: Weights) -> Weights:
    """That this architecture does not have."""
    return weights | {"blk.0.ffn_down.bias": numpy.ones(32, numpy.float32)}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without_a_layer, r"missing \(model\.layers\.1\..* more\)"),
        (renamed, r"3 missing \(model\.layers\.0\.mlp\.down_proj"),
        (with_another_layer, r"\(4 layers\).*\(3 layers\)"),
        (with_a_bias, "holds 32 values"),
    ],
)
def test_a_weight_too_few_or_too_many_is_an_error(
    change: Callable[[Weights], Weights], problem: str, qwen2: ChatModel, tmp_path: Path, cache: Path
) -> None:
    write_gguf(qwen2, tmp_path / "tiny.gguf", changed=change)
    with pytest.raises(SafetyNeuronsError, match=problem):
        load(tmp_path / "tiny.gguf", device="cpu")
    assert unpacked(cache) == []


def test_a_file_without_a_padding_token(qwen2: ChatModel, tmp_path: Path) -> None:
    qwen2.tokenizer.pad_token = None
    write_gguf(qwen2, tmp_path / "tiny.gguf")
    loaded = load(tmp_path / "tiny.gguf", device="cpu", dtype="float32")
    assert loaded.render("Hi") == qwen2.render("Hi")


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_scales_its_rotary_frequencies(factor: float, qwen2: ChatModel, tmp_path: Path) -> None:
    """A GGUF file holds the factors as a tensor, which transformers leaves out."""
    base = 500_000.0
    qwen2.model.config.rope_parameters["rope_theta"] = base
    wavelengths = 2 * numpy.pi * base ** (numpy.arange(0, 8, 2) / 8)
    smooth = ((8192 / wavelengths - 1) / 3).clip(0, 1)
    # Published in Meta's llama-models: interpolated between the frequencies that are kept and those that are divided.
    factors = 1 / ((1 - smooth) / factor + smooth)

    def scaled(weights: Weights) -> Weights:
        return weights | {"rope_freqs.weight": factors.astype(numpy.float32)}

    write_gguf(qwen2, tmp_path / "tiny.gguf", changed=scaled)
    assert factors.max() == pytest.approx(factor)
    loaded = load(tmp_path / "tiny.gguf", device="cpu", dtype="float32")
    kept = loaded.model.base_model.rotary_emb.inv_freq
    assert torch.allclose(kept * torch.tensor(factors), torch.tensor(base ** (-numpy.arange(0, 8, 2) / 8)), rtol=1e-3)
    assert loaded.model.config.rope_parameters["factor"] == factor


def test_other_rotary_factors_are_an_error(qwen2: ChatModel, tmp_path: Path) -> None:
    def scaled(weights: Weights) -> Weights:
        return weights | {"rope_freqs.weight": numpy.array([1, 2, 3, 4], numpy.float32)}

    write_gguf(qwen2, tmp_path / "tiny.gguf", changed=scaled)
    with pytest.raises(SafetyNeuronsError, match=r"rope_freqs\.weight"):
        load(tmp_path / "tiny.gguf", device="cpu")


def test_parts_are_known_by_their_names(tmp_path: Path) -> None:
    names = [f"a-00002-of-00003-0000{number}-of-00002.gguf" for number in (1, 2)]
    for name in (*names, "plain.gguf", "a-00003-of-00002.gguf", "b-1-of-2.gguf"):
        (tmp_path / name).touch()
    assert [path.name for path in gguf_files.gguf_parts(tmp_path / names[1])] == names
    for name in ("plain.gguf", "a-00003-of-00002.gguf", "b-1-of-2.gguf"):
        assert gguf_files.gguf_parts(tmp_path / name) == [tmp_path / name]


def test_joined_parts_are_the_whole_file(qwen2: ChatModel, parts: list[Path], tmp_path: Path) -> None:
    whole = write_gguf(qwen2, tmp_path / "whole.gguf")[0]
    gguf_files.join(parts, tmp_path / "joined.gguf")
    expected, found = gguf.GGUFReader(whole), gguf.GGUFReader(tmp_path / "joined.gguf")
    assert {name: field.contents() for name, field in found.fields.items()} == {
        name: field.contents() for name, field in expected.fields.items()
    }
    assert [(each.name, each.tensor_type, each.data.tobytes()) for each in found.tensors] == [
        (each.name, each.tensor_type, each.data.tobytes()) for each in expected.tensors
    ]


def test_parts_whose_names_differ_in_case_are_found(parts: list[Path], cache: Path) -> None:
    identity = locate(str(parts[0])).identity
    named = parts[2].rename(parts[2].with_suffix(".GGUF"))
    parts[0].rename(parts[0].with_name("TINY-00001-of-00003.gguf"))
    assert locate(str(named)).identity == identity


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(SafetyNeuronsError, match="git lfs pull"):
        locate(str(path))
