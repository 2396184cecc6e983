"""What a name stands for, before anything is loaded."""

from pathlib import Path

import huggingface_hub
import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models import locate as locating
from safety_neurons.models.locate import Located, availability, locate
from safety_neurons.models.presets import DEFAULT_MODEL, PRESETS
from safety_neurons.models.unpacked import record


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(locating, "installed_parts", lambda package: None)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_presets_without_a_package_lead_to_the_hub(preset: object) -> None:
    assert preset in PRESETS.values()
    name = getattr(preset, "name", "")
    assert locate(name) == Located(PRESETS[name].hub_id, None)
    assert PRESETS[name].hub_id.count("/") == 1


def test_a_preset_that_was_unpacked_leads_to_its_folder() -> None:
    package = PRESETS[DEFAULT_MODEL].package
    assert package is not None
    folder = locating.model_folder(package.sha256)
    folder.mkdir(parents=True)
    record(folder)
    assert locate(DEFAULT_MODEL) == Located(str(folder), package.sha256)


@pytest.mark.parametrize(
    ("name", "near"),
    [("qwen2.5-coder-0.5", "qwen2.5-coder-0.5b"), ("lama-3.1-8b", "llama-3.1-8b"), ("gema-2b", "gemma")],
)
def test_an_unknown_name_is_an_error_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(SafetyNeuronsError, match=f"{name}.*Did you mean .*{near}.*\\?"):
        locate(name)


@pytest.mark.parametrize("name", ["~~~~", "a/b/c", "/no/such/folder", "./missing", "../missing", "~/missing-model"])
def test_what_is_nothing_is_an_error_that_lists_what_would_do(name: str) -> None:
    with pytest.raises(SafetyNeuronsError, match="There is no model called") as caught:
        locate(name)
    assert "Did you mean" not in str(caught.value)
    assert all(preset in str(caught.value) for preset in PRESETS)


def test_a_folder_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"no config\.json"):
        locate(str(tmp_path))


def test_a_folder_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path)) == Located(str(tmp_path), locating.folder_identity(tmp_path))


def test_a_folder_wins_over_a_hub_id_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("owner/model") == Located("owner/model", None)
    folder = tmp_path / "owner" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert locate("owner/model")[1] == locating.folder_identity(folder)


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert locate("~/model")[0] == str(folder)


@pytest.mark.parametrize("make", ["nothing", "folder"])
def test_a_missing_gguf_file(make: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    if make == "folder":
        path.mkdir()
    with pytest.raises(SafetyNeuronsError, match=r"model\.gguf does not exist"):
        locate(str(path))


def test_availability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locating, "hub_identity", lambda hub_id: None)
    packaged, gated = PRESETS[DEFAULT_MODEL], PRESETS["llama-3.2-1b"]
    assert packaged.package is not None
    here, how = availability(packaged)
    assert (here, packaged.package.install in how) == ("no", True)
    here, how = availability(gated)
    assert (here, "HF_TOKEN" in how) == ("no", True)
    assert "HF_TOKEN" not in availability(PRESETS["qwen3-0.6b"])[1]

    monkeypatch.setattr(locating, "installed_parts", lambda package: [Path("part")])
    assert availability(packaged) == ("yes", f"in an installed package ({packaged.hub_id})")
    folder = locating.model_folder(packaged.package.sha256)
    folder.mkdir(parents=True)
    record(folder)
    assert availability(packaged) == ("yes", f"unpacked in the cache ({packaged.hub_id})")
    monkeypatch.setattr(locating, "hub_identity", lambda hub_id: "0123abc")
    assert availability(gated) == ("yes", f"in the hub's cache ({gated.hub_id})")


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "chat_template.jinja", "additional_chat_templates/rag.jinja"),
        *("tokenizer_config.json", "merges.txt", "tokenizer.model", "modeling_own.py", "adapter_model.safetensors"),
    ],
)
def test_identity_of_a_folder_depends_on_all_that_decides_its_answers(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("one")
    first = locating.folder_identity(tmp_path)
    path.write_text("two")
    second = locating.folder_identity(tmp_path)
    path.write_text("one")
    assert locating.folder_identity(tmp_path) == first != second
