"""A merged folder is the tuned model in the base's own dtype, and its card says what was done and nothing else."""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from builders.report import calibrated, evaluation, example
from builders.runs import run_record
from safety_neurons.cli import main
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import file_sha256, write_json
from safety_neurons.core.markdown import escaped
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import load
from safety_neurons.models.presets import PRESETS
from safety_neurons.neurons.neuron_set import NeuronSet, Provenance
from safety_neurons.report import RunResults
from safety_neurons.report.exports import model_card
from safety_neurons.runs.folder import RunFolder, merged_settings
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.merge import checkpoint_dtype, merge
from safety_neurons.tuning.neuron_deltas import empty_delta

TEXTS = ["Hello there.", "A longer text, so that the others are padded.", "ab"]


def random_delta(model: ChatModel) -> NeuronDelta:
    generator = torch.Generator().manual_seed(0)
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    drawn = [torch.randperm(width, generator=generator)[:7] for width in widths]
    each = tuple(hook_point.parameters_per_neuron for hook_point in model.hook_points)
    neurons = NeuronSet(
        tuple(layer[:4].sort().values for layer in drawn),
        tuple(layer[3:].sort().values for layer in drawn),
        widths,
        tuple(hook_point.layer for hook_point in model.hook_points),
        Provenance(model.name, model.identity, "by hand", 1.0, "layer", 0, each, model.parameters),
    )
    tensors = {name: torch.randn(zero.shape, generator=generator) for name, zero in empty_delta(model, neurons).items()}
    return NeuronDelta(neurons, tensors).scale(0.2)


def logits(model: ChatModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.model(**model.encode(TEXTS), use_cache=False).logits
    return found


def saved(model: ChatModel, folder: Path, dtype: torch.dtype) -> Path:
    """The model as a checkpoint of this dtype."""
    copy.deepcopy(model.model).to(dtype).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "gemma2", "opt", "mixtral", "gpt_oss"])
def test_merged_folder_is_the_tuned_model(
    make_model: Callable[..., ChatModel], architecture: str, tmp_path: Path
) -> None:
    model = make_model(architecture)
    delta = random_delta(model)
    before = {name: value.detach().clone() for name, value in model.model.state_dict().items()}
    assert merge(delta, model, tmp_path / "deep" / "merged", "The card.") == tmp_path / "deep" / "merged"
    after = model.model.state_dict()
    assert all(torch.equal(value.view(torch.uint8), before[name].view(torch.uint8)) for name, value in after.items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["merged"]
    assert (tmp_path / "deep" / "merged" / "README.md").read_text() == "The card."
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "deep" / "merged").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "deep" / "merged")
    assert tokenizer.chat_template == model.tokenizer.chat_template
    with delta.apply(model):
        expected = logits(model)
    torch.testing.assert_close(logits(ChatModel(loaded, tokenizer, "merged", "")), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(model), expected, atol=1e-2)


def test_generation_settings_are_kept_even_if_they_contradict_each_other(model: ChatModel, tmp_path: Path) -> None:
    """Vicuna's have a temperature for greedy answers, which transformers refuses to write."""
    settings = transformers.GenerationConfig(eos_token_id=[1, 2], temperature=0.9, top_p=0.6)
    model.model.generation_config = settings
    merge(random_delta(model), model, tmp_path / "merged", "")
    assert model.model.generation_config is settings
    written = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert written.pop("transformers_version") == transformers.__version__
    assert written == {"eos_token_id": [1, 2], "temperature": 0.9, "top_p": 0.6}


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen2_moe"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_merged_weights_have_the_dtype_of_the_checkpoint(
    make_model: Callable[..., ChatModel], architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Loaded in float32, as on most CPUs. What was not tuned has the bytes of the checkpoint."""
    folder = saved(make_model(architecture), tmp_path / "base", dtype)
    model = load(folder, dtype="float32")
    delta = random_delta(model)
    merge(delta, model, tmp_path / "merged", "")
    base, merged = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "merged"))
    assert merged.keys() == base.keys()
    assert {value.dtype for value in merged.values()} == {dtype}
    changed = {name for name, value in merged.items() if not torch.equal(value, base[name])}
    assert changed
    assert all("mlp" in name for name in changed)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert loaded.dtype == dtype
    own = load(folder, dtype=str(dtype).removeprefix("torch."))
    with delta.apply(own):
        assert torch.equal(logits(replace(own, model=loaded)), logits(own))
    # A tuned model is another base: its own delta does not go on top of it.
    with pytest.raises(SafetyNeuronsError, match="was made for"):
        delta.apply(load(tmp_path / "merged"))


def test_merging_what_was_loaded_in_a_smaller_dtype_is_refused(model: ChatModel, tmp_path: Path) -> None:
    loaded = load(saved(model, tmp_path / "base", torch.float32), dtype="bfloat16")
    with pytest.raises(SafetyNeuronsError, match=r'float32, and were loaded in bfloat16.*dtype="float32"'):
        merge(random_delta(loaded), loaded, tmp_path / "merged", "")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_dtype_of_a_checkpoint(model: ChatModel, tmp_path: Path) -> None:
    folder = saved(model, tmp_path / "base", torch.bfloat16)
    assert checkpoint_dtype(str(folder), "any") == torch.bfloat16
    config = json.loads((folder / "config.json").read_text())
    for named, expected in (
        ({"torch_dtype": "float16"}, torch.float16),
        ({"text_config": {"dtype": "bfloat16"}}, torch.bfloat16),
        ({}, None),
    ):
        write_json(folder / "config.json", {key: value for key, value in config.items() if key != "dtype"} | named)
        assert checkpoint_dtype(str(folder), "any") == expected
    # Weights in GGUF have none of their own, and neither has what is nowhere.
    preset = next(preset for preset in PRESETS.values() if preset.package)
    assert preset.package is not None
    assert checkpoint_dtype(preset.name, preset.package.sha256) is None
    for name in ("LlamaForCausalLM", "no/such/model", "nobody/nothing", "model.gguf"):
        assert checkpoint_dtype(name, "any") is None


def test_merging_over_something_is_refused(model: ChatModel, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "file.txt").write_text("mine")
    with pytest.raises(SafetyNeuronsError, match="exists already"):
        merge(random_delta(model), model, folder, "")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert [path.read_text() for path in folder.iterdir()] == ["mine"]


def test_merging_into_the_wrong_base_leaves_nothing(make_model: Callable[..., ChatModel], tmp_path: Path) -> None:
    delta = random_delta(make_model("llama"))
    with pytest.raises(SafetyNeuronsError, match="was made for"):
        merge(delta, make_model("llama", seed=1), tmp_path / "merged", "")
    assert list(tmp_path.iterdir()) == []


def results(model: str = "any", identity: str = "tiny-llama-0") -> dict[str, Any]:
    settings = merged_settings({}, {"model": model, "seed": 3, "tune": {"learning_rate": 0.00025}})
    evaluated = evaluation({"pre|fix": (0.3, 0.1)}, (0.5, 0.05), {"benign": (0.1, None)}, unscored=0, n=40)
    prompts = {"name": "a|b", "source": "bundled\n# Heading", "sha256": "0123", "train": 8, "validation": 2, "test": 4}
    return {
        "schema": 3,
        "run": {
            "model": {"name": model, "identity": identity, "dtype": "float32"},
            "command": "safety-neurons run --model any\n```\n# not a heading",
            "settings": settings.model_dump(mode="json"),
            "prompts": {"harmful": prompts},
            "versions": {"torch": "2.99"},
        },
        "training": {"corpus": {"refusal": 71, "benign": 1234}, "trainable_parameters": 5},
        "rows": [calibrated("found", "toward conformity", "harmful", 0.9)],
        "evaluation": evaluated,
        "examples": [example("SECRET PROMPT", "SECRET RESPONSE", "complied")],
        "words": [{"layer": 1, "side": "rejection", "words": ["SECRET WORD"]}],
    }


def test_card_says_what_was_tuned_on_what_and_what_was_measured(model: ChatModel) -> None:
    delta = random_delta(model)
    card = model_card(delta, RunResults.of(results()), "safety-neurons merge runs/any folder")
    lines = card.splitlines()
    assert f"{len(delta.neurons):,} MLP neurons" in card
    assert f"{delta.parameters:,} weights" in card
    assert "| Base | tiny-llama |" in lines
    assert model.identity in card
    assert "| refusal | 71 |" in lines
    assert "| benign | 1,234 |" in lines
    dash = "\N{EN DASH}"
    assert f"| harmful | mean | attack success | 50% (46{dash}54%) | 40 | 5% (1{dash}9%) | 40 |" in lines
    assert f"| benign | direct | refused | 10% (6{dash}14%) | 40 | {dash} | {dash} |" in lines
    assert "Judge: refusal." in lines
    assert r"| tune.learning\_rate | 0.00025 |" in lines
    assert "| seed | 3 |" in lines
    assert "    safety-neurons merge runs/any folder" in lines
    assert "torch 2.99." in card
    assert "Check it before you use or share" in card
    assert "from_pretrained" in card
    assert "SECRET" not in card
    assert "find.scope" not in card
    assert "evaluate.attacks" in card
    # Another stage's row.
    assert "90%" not in card


def test_nothing_that_others_wrote_breaks_the_card(model: ChatModel) -> None:
    """No table gets more cells, no heading or block is opened, and no link or picture is loaded."""
    provenance = replace(random_delta(model).neurons.provenance, model="![x](http://evil) | a\n# b <img src=x>")
    delta = random_delta(model)
    delta = replace(delta, neurons=replace(delta.neurons, provenance=provenance))
    card = model_card(delta, RunResults.of(results()), "safety-neurons merge")
    body = card.split("\n---\n", 1)[1]
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert [heading for heading in headings if heading.startswith("# ")] == headings[:1]
    assert len(headings) == 7
    assert sum(line.startswith("```") for line in body.splitlines()) == 2
    assert not re.search(r"(?<!\\)[!<]\[?img|(?<!\\)!\[|(?<!\\)<img", body)
    widths: set[int] = set()
    for line in [*body.splitlines(), ""]:
        if line.startswith("|"):
            widths.add(len(re.findall(r"(?<!\\)\|", line)))
        else:
            assert len(widths) <= 1
            widths = set()


def test_escaped_cells() -> None:
    assert escaped("a|b\nc") == r"a\|b↵c"
    assert escaped("`x` *y* <b>") == r"\`x\` \*y\* &lt;b\>"
    assert escaped("\\|") == r"\\\|"
    assert "\u202e" not in escaped("\u202e")


def test_card_of_a_delta_without_a_run(model: ChatModel) -> None:
    card = model_card(random_delta(model))
    assert "Not measured." in card
    assert "Not known here" in card
    assert "How it was made" not in card
    assert "## Settings" not in card


@pytest.mark.parametrize("quantize", [None, "8bit"])
def test_merge_command(quantize: str | None, model: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tuned over packed weights is merged into the checkpoint's own."""
    base = saved(model, tmp_path / "base", torch.bfloat16)
    plain = load(base, dtype="float32")
    delta = random_delta(plain)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    delta.save(folder.delta)
    folder.corpus.write_bytes(b"")
    record = results(str(base), plain.identity)
    record["run"]["settings"] |= {"quantize": quantize, "dtype": "float32"}
    record["run"]["model"] = {"name": str(base), "identity": plain.identity, "dtype": "float32"}
    files = {path.name: file_sha256(path) for path in (folder.corpus, folder.delta)}
    record["run"]["stages"] = {"tune": {"fingerprint": "tuned", "files": files}}
    folder.write_record(run_record(**{name: record["run"][name] for name in ("settings", "model", "stages")}))
    write_json(folder.results, record)
    monkeypatch.setattr("sys.argv", ["safety-neurons", "merge", str(folder.path), str(tmp_path / "merged")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert loaded.dtype == torch.bfloat16
    own = load(base, dtype="bfloat16")
    with delta.apply(own):
        assert torch.equal(logits(replace(own, model=loaded)), logits(own))
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"    safety-neurons merge {folder.path} {tmp_path / 'merged'}" in card.splitlines()
    assert "50% (46\N{EN DASH}54%) | 40 |" in card
