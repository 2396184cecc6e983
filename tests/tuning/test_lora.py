"""LoRA: what is trained, that it is found again, and that the model is left as it was."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safety_neurons.core.errors import CannotRunError, DivergedError, SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.tuning import lora
from safety_neurons.tuning.config import Training
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.lora import Adapter, cached_lora, matrices_of, train_lora

pytestmark = pytest.mark.filterwarnings("ignore")
TRAINING = Training(learning_rate=1e-2, batch_size=5, epochs=1, kl=0.5)


def logits(model: ChatModel) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.model(**model.encode(["Hi there"])).logits
    return output


def weights(model: ChatModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


def check_same(model: ChatModel, before: dict[str, Tensor]) -> None:
    after = model.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value.view(torch.uint8), before[name].view(torch.uint8)) for name, value in after.items())


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gpt2"])
def test_merged_adapters_are_the_product_in_the_weights(
    make_model: Callable[..., ChatModel], corpus: Corpus, architecture: str
) -> None:
    model = make_model(architecture)
    adapter = train_lora(model, corpus, TRAINING, rank=3, alpha=12.0)
    before, base = weights(model), logits(model)
    assert adapter.parameters == sum(3 * sum(before[f"{name}.weight"].shape) for name in matrices_of(model))
    with adapter.added(model):
        beside = logits(model)
    check_same(model, before)
    with adapter.merged(model):
        # A frozen head would be slow.
        assert model.model.get_output_embeddings().weight.requires_grad
        assert not torch.allclose(logits(model), base, atol=1e-3)
        torch.testing.assert_close(logits(model), beside, rtol=1e-4, atol=1e-4)
        for name in matrices_of(model):
            first, second = (adapter.tensors[f"base_model.model.{name}.lora_{one}.weight"] for one in "AB")
            change = 4 * second @ first
            change = change.T if architecture == "gpt2" else change
            weight = model.model.get_submodule(name).base_layer.weight
            torch.testing.assert_close(weight, before[f"{name}.weight"] + change)
    check_same(model, before)
    assert torch.equal(logits(model), base)


def test_training_lowers_the_loss_and_follows_from_the_seed(model: ChatModel, corpus: Corpus) -> None:
    losses: dict[str, float] = {}
    for name, epochs in (("short", 1), ("long", 8)):
        training = TRAINING.override({"epochs": epochs})
        adapter = train_lora(model, corpus, training)
        assert train_lora(model, corpus, training).digest == adapter.digest
        with adapter.added(model):
            losses[name] = answer_loss(model, corpus)
    assert losses["long"] < losses["short"] < answer_loss(model, corpus)


def answer_loss(model: ChatModel, corpus: Corpus) -> float:
    total = 0.0
    for pair in corpus.pairs:
        prompt = model.encode([model.render(pair.user)])["input_ids"]
        answer = model.encode([pair.response])["input_ids"]
        with torch.no_grad():
            found = model.model(input_ids=torch.cat([prompt, answer], 1)).logits[0, prompt.shape[1] - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(found, answer[0]))
    return total


def test_kept_adapters_are_found_again(
    model: ChatModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cached_lora(tmp_path, model, corpus, TRAINING)
    (folder,) = tmp_path.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    made.save(tmp_path / "again", model)
    assert {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()} == files
    monkeypatch.setattr(lora, "trained", lambda *_, **__: pytest.fail("trained again"))
    found = cached_lora(tmp_path, model, corpus, TRAINING)
    assert (found.digest, found.base, found.rank, found.alpha) == (made.digest, made.base, made.rank, made.alpha)
    others: list[dict[str, Any]] = [{"rank": 4}, {"alpha": 1.0}, {"training": TRAINING.override({"seed": 1})}]
    others += [{"corpus": Corpus(corpus.pairs[1:])}, {"model": dataclasses.replace(model, identity="another")}]
    for other in others:
        given: dict[str, Any] = {"model": model, "corpus": corpus, "training": TRAINING} | other
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            cached_lora(tmp_path, **given)


def test_peft_reads_what_is_kept(make_model: Callable[..., ChatModel], corpus: Corpus, tmp_path: Path) -> None:
    from peft import PeftModel

    model, other = make_model(), make_model()
    adapter = train_lora(model, corpus, TRAINING)
    adapter.save(tmp_path, model)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == adapter.rank
    PeftModel.from_pretrained(other.model, str(tmp_path))
    with adapter.added(model):
        assert torch.equal(logits(model), logits(other))


def test_a_killed_training_goes_on_to_the_same_adapters(model: ChatModel, corpus: Corpus, tmp_path: Path) -> None:
    training = TRAINING.override({"epochs": 3, "checkpoint_every": 2})
    whole = train_lora(model, corpus, training)
    done = 0

    def killed(items: int) -> None:
        nonlocal done
        done += items
        if done == 7:
            raise KeyboardInterrupt

    before, path = weights(model), tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_lora(model, corpus, training, checkpoint=path, advance=killed)
    check_same(model, before)
    steps: list[int] = []
    resumed = train_lora(model, corpus, training, checkpoint=path, advance=steps.append)
    assert (resumed.digest, steps) == (whole.digest, [6, *[1] * 6])
    assert not path.exists()


def test_what_cannot_be_trained_says_why(
    make_model: Callable[..., ChatModel], corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    with pytest.raises(CannotRunError, match="has experts"):
        train_lora(make_model("mixtral"), corpus, TRAINING)
    with pytest.raises(SafetyNeuronsError, match="corpus is empty"):
        train_lora(model, Corpus(()), TRAINING)
    with pytest.raises(SafetyNeuronsError, match="shard"):
        train_lora(model, corpus, TRAINING.override({"shard": True}))
    with pytest.raises(SafetyNeuronsError, match="rank"):
        train_lora(model, corpus, TRAINING, rank=0)
    with pytest.raises(DivergedError, match="LoRA diverged"):
        train_lora(model, corpus, TRAINING.override({"learning_rate": 1e30, "epochs": 3}))
    with pytest.raises(SafetyNeuronsError, match=r"made for elsewhere \(abc\), not for tiny"):
        Adapter("elsewhere", "abc", 8, 16.0, {}).added(model)
    made = train_lora(model, corpus, TRAINING)
    made.save(tmp_path, model)
    (tmp_path / lora.TENSORS).write_bytes(b"broken")
    with pytest.raises(SafetyNeuronsError):
        Adapter.load(tmp_path)
    monkeypatch.setattr(lora.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(CannotRunError, match=r"pip install 'safety-neurons\[lora\]'"):
        train_lora(model, corpus, TRAINING)
