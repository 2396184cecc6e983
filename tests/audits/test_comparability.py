"""Which models are compared: what makes a comparison unsound is one paragraph, before any weights are read."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import safety_neurons as sn
from builders.commands import one_paragraph
from builders.gguf_files import write_gguf
from builders.models import TEMPLATE, tiny_model
from builders.runs import no_model, save_model
from safety_neurons.audits import answers
from safety_neurons.audits.comparability import Checkpoint, check_comparable
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Silence
from safety_neurons.models.chat import ChatModel
from safety_neurons.settings import Settings

Change = Callable[[ChatModel], ChatModel | None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_model(tiny_model(), tmp_path_factory.mktemp("models") / "base"))


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No weights are loaded, and what is unpacked goes into a cache of its own."""
    monkeypatch.setattr(answers, "load_model", no_model)
    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def remarks(base: Path, tuned: Path, **settings: Any) -> list[str]:
    before, after = (Checkpoint.read(Settings(model=str(one), **settings), Silence()) for one in (base, tuned))
    return check_comparable(before, after, Settings(**settings))


def problem(base: Path, tuned: Path) -> str:
    """What an audit says of two models, before it makes a folder."""
    out = tuned.parent / "audit"
    with pytest.raises(SafetyNeuronsError) as caught:
        sn.audit(str(base), str(tuned), out=out)
    assert one_paragraph(str(caught.value))
    assert not (out / "run.json").exists()
    return str(caught.value)


def saved(folder: Path, architecture: str = "llama", seed: int = 1, **changes: Any) -> Path:
    return Path(save_model(tiny_model(architecture, seed, **changes), folder))


def resized(model: ChatModel) -> None:
    model.tokenizer.add_tokens(["<one more>"])
    model.model.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)


def other_ids(model: ChatModel) -> ChatModel:
    """The same tokens in another order."""
    content = json.loads(model.tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), pad_token="<pad>", eos_token="<|end|>"
    )
    fast.chat_template = TEMPLATE
    return ChatModel(model.model, fast, model.name, model.identity)


def other_template(model: ChatModel) -> None:
    model.tokenizer.chat_template = "{% if messages %}Be good. {% endif %}" + TEMPLATE


def without_template(model: ChatModel) -> None:
    model.tokenizer.chat_template = None


@pytest.mark.parametrize(
    ("architecture", "changes", "change", "said"),
    [
        ("qwen2", {}, None, "is of another architecture (qwen2) than"),
        ("llama", {"intermediate_size": 64}, None, "different shapes (intermediate_size 48 and 64)"),
        ("llama", {"num_hidden_layers": 2}, None, "different shapes (num_hidden_layers 3 and 2)"),
        ("llama", {}, resized, "was resized: it has 262 embeddings"),
        ("llama", {}, other_ids, "has another tokenizer than"),
        ("llama", {}, other_template, "have different chat templates"),
        ("llama", {}, without_template, "has no chat template"),
    ],
)
def test_what_cannot_be_compared(
    base: Path, tmp_path: Path, architecture: str, changes: dict[str, Any], change: Change | None, said: str
) -> None:
    model = tiny_model(architecture, 1, **changes)
    model = (change(model) if change else None) or model
    tuned = Path(save_model(model, tmp_path / "tuned"))
    assert said in problem(base, tuned)


def test_a_resized_vocabulary_names_what_was_added(base: Path, tmp_path: Path) -> None:
    model = tiny_model()
    resized(model)
    assert "adds <one more>" in problem(base, Path(save_model(model, tmp_path / "tuned")))


def test_a_model_is_not_compared_with_itself(base: Path, tmp_path: Path) -> None:
    assert problem(base, base).startswith("TUNED is BASE")
    copied = Path(shutil.copytree(base, tmp_path / "copy"))
    assert problem(base, copied).startswith("TUNED is BASE")


def test_a_fine_tune_is_compared_without_a_remark(base: Path, tmp_path: Path) -> None:
    assert remarks(base, saved(tmp_path / "tuned")) == []


def test_what_makes_no_difference_is_only_remarked(base: Path, tmp_path: Path) -> None:
    model = tiny_model(seed=1)
    # As trainers save it.
    model.tokenizer.chat_template = "{# saved again #}" + TEMPLATE
    assert remarks(base, Path(save_model(model, tmp_path / "worded"))) == [
        "The chat templates are worded differently and write the same."
    ]
    half = tiny_model(seed=1)
    half.model.bfloat16()
    [said] = remarks(base, Path(save_model(half, tmp_path / "half")))
    assert "stored as float32" in said
    assert "as bfloat16" in said
    # One template for both takes the difference away.
    other = tiny_model(seed=1)
    other_template(other)
    tuned = Path(save_model(other, tmp_path / "other"))
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    assert remarks(base, tuned, chat_template=tmp_path / "mine.jinja") == []


def write_adapter(folder: Path, named: Path, **options: Any) -> Path:
    """A LoRA of the tiny model that names its base."""
    model = tiny_model()
    adapted = get_peft_model(
        model.model, LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM", **options)
    )
    adapted.peft_config["default"].base_model_name_or_path = str(named)
    adapted.save_pretrained(folder)
    return folder


def test_adapters(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base)
    assert remarks(base, adapter) == []
    checkpoint = Checkpoint.read(Settings(model=str(adapter)), Silence())
    assert checkpoint.form.startswith("PEFT adapter")
    # Of another model of the same shape.
    other = saved(tmp_path / "other", seed=2)
    [said] = remarks(base, write_adapter(tmp_path / "others", other))
    assert f"is an adapter of {other}" in said
    # Trained with more tokens than its base has.
    grown = tiny_model()
    resized(grown)
    adapted = get_peft_model(
        grown.model,
        LoraConfig(
            r=2,
            target_modules=["down_proj"],
            modules_to_save=["embed_tokens", "lm_head"],
            task_type="CAUSAL_LM",
        ),
    )
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "grown")
    grown.tokenizer.save_pretrained(tmp_path / "grown")
    assert "was resized: it has 262 embeddings" in problem(base, tmp_path / "grown")


def test_gguf_files(tmp_path: Path) -> None:
    before, after = tiny_model("qwen2"), tiny_model("qwen2", 1)
    for name, model in (("before", before), ("after", after)):
        write_gguf(model, tmp_path / f"{name}.gguf")
    [said] = remarks(tmp_path / "before.gguf", tmp_path / "after.gguf")
    assert "is a GGUF file" in said
    same = Path(shutil.copy(tmp_path / "before.gguf", tmp_path / "same.gguf"))
    assert problem(tmp_path / "before.gguf", same).startswith("TUNED is BASE")


def test_models_that_are_none(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="There is no model called"):
        sn.audit("nonsense", str(base), out=tmp_path / "out")
