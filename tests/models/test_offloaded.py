"""Models whose weights are elsewhere outside the forward pass: on the CPU beside a GPU, or on disk."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor

from builders.quick import explain, find, tune
from safety_neurons.calibration.calibration import calibrate
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import generate
from safety_neurons.models.load import load
from safety_neurons.models.neurons.hook_points import device_of, fetched
from safety_neurons.tuning.corpus import Corpus, Pair
from safety_neurons.tuning.delta import outside_digest
from safety_neurons.tuning.merge import merge

CPU = torch.device("cpu")
MODELS = ["llama", "gpt2", "gemma2", "mixtral"]


def to_cpu(model: Any, _folder: Path) -> None:
    accelerate.cpu_offload(model, execution_device=CPU)


def to_disk(model: Any, folder: Path) -> None:
    accelerate.disk_offload(model, str(folder), execution_device=CPU)


def dispatched(model: Any, folder: Path) -> None:
    """Some blocks in memory, the others on disk, as `device_map="auto"` does it when memory is short."""
    names = [name for name, child in model.named_children() if name != "lm_head"]
    (base,) = names
    blocks = {f"{base}.{name}": "cpu" for name, _ in model.get_submodule(base).named_children()} | {"lm_head": "cpu"}
    (layers,) = (
        name for name in blocks if name != "lm_head" and isinstance(model.get_submodule(name), torch.nn.ModuleList)
    )
    del blocks[layers]
    blocks |= {f"{layers}.{index}": "disk" if index else "cpu" for index in range(len(model.get_submodule(layers)))}
    accelerate.dispatch_model(model, blocks, main_device="cpu", offload_dir=str(folder))


@pytest.fixture(params=MODELS)
def pair(
    request: pytest.FixtureRequest, make_model: Callable[..., ChatModel], tmp_path: Path
) -> Callable[[Callable[[Any, Path], None]], tuple[ChatModel, ChatModel]]:
    """The same model twice: in memory and offloaded."""

    def make(offload: Callable[[Any, Path], None]) -> tuple[ChatModel, ChatModel]:
        plain, other = make_model(request.param), make_model(request.param)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            offload(other.model, tmp_path / "offload")
        return plain, other

    return make


@pytest.mark.parametrize("offload", [to_cpu, to_disk, dispatched])
def test_offloaded_models_have_the_same_neurons(
    offload: Callable[[Any, Path], None],
    pair: Callable[..., tuple[ChatModel, ChatModel]],
    harmful: list[str],
    benign: list[str],
) -> None:
    plain, offloaded = pair(offload)
    assert any(parameter.is_meta for parameter in offloaded.model.parameters())
    assert offloaded.coverage == plain.coverage
    assert offloaded.device == CPU
    for mine, theirs in zip(offloaded.hook_points, plain.hook_points, strict=True):
        some = torch.tensor([0, 5, mine.width - 1])
        assert torch.equal(mine.write_vectors(), theirs.write_vectors())
        assert torch.equal(mine.write_vectors(some), theirs.write_vectors(some))
    found, expected = find(offloaded, harmful, benign, percent=5), find(plain, harmful, benign, percent=5)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found.both, expected.both, strict=True))
    assert explain(offloaded, found) == explain(plain, expected)
    texts = [plain.render(text) for text in benign[:2]]

    def answers(model: ChatModel, neurons: Any) -> list[Any]:
        with calibrate(model, neurons, toward="rejection", alpha=20):
            return sorted(generate(model, texts, max_new_tokens=4))

    assert answers(offloaded, found) == answers(plain, expected)
    # What was fetched went away again.
    assert any(parameter.is_meta for parameter in offloaded.model.parameters())


@pytest.mark.parametrize("offload", [to_cpu, to_disk])
def test_offloaded_models_are_tuned_to_the_same(
    offload: Callable[[Any, Path], None],
    pair: Callable[..., tuple[ChatModel, ChatModel]],
    harmful: list[str],
    benign: list[str],
) -> None:
    """A delta is added while the matrices run: the weights themselves are elsewhere, and stay as they are."""
    plain, offloaded = pair(offload)
    neurons = find(plain, harmful, benign, percent=5)
    corpus = Corpus((Pair("refusal", "1", "Hello", "", "No."),))
    expected, found = (tune(model, neurons, corpus, learning_rate=1e-2) for model in (plain, offloaded))
    assert any(value.any() for value in expected.tensors.values())
    for name, value in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], value, rtol=1e-3, atol=1e-5, msg=name)
    digest = outside_digest(offloaded, neurons)
    text = offloaded.encode([offloaded.render(harmful[0])])
    with torch.no_grad():
        before = offloaded.model(**text).logits
        with expected.apply(plain), expected.apply(offloaded):
            torch.testing.assert_close(offloaded.model(**text).logits, plain.model(**text).logits)
            assert not torch.equal(offloaded.model(**text).logits, before)
            assert outside_digest(offloaded, neurons) == digest
        assert torch.equal(offloaded.model(**text).logits, before)
    with pytest.raises(SafetyNeuronsError, match="not in memory, so a delta cannot be merged"):
        merge(expected, offloaded, Path("merged"), "")


def test_the_identity_of_a_model_in_memory_does_not_depend_on_where_its_weights_are(
    make_model: Callable[..., ChatModel], tmp_path: Path
) -> None:
    plain, offloaded = make_model(), make_model()
    to_disk(offloaded.model, tmp_path)
    assert load(offloaded.model, offloaded.tokenizer).identity == load(plain.model, plain.tokenizer).identity


def test_weights_that_nothing_can_fetch_are_an_error(model: ChatModel) -> None:
    layer = model.hook_points[0].write.to("meta")  # type: ignore[attr-defined]
    with pytest.raises(SafetyNeuronsError, match="not in memory and cannot be fetched"), fetched(layer):
        pass
    with pytest.raises(SafetyNeuronsError, match="cannot be fetched"):
        model.hook_points[0].write_vectors()


def test_fetched_weights_are_there_while_the_context_is_open_and_gone_after_an_exception(
    model: ChatModel, tmp_path: Path
) -> None:
    module = model.hook_points[1].write  # type: ignore[attr-defined]
    weight: Tensor = module.weight.detach().clone()
    to_disk(model.model, tmp_path)
    assert module.weight.is_meta
    with fetched(module):
        assert torch.equal(module.weight, weight)
    assert module.weight.is_meta
    with pytest.raises(RuntimeError, match="power cut"), fetched(module):
        raise RuntimeError("power cut")
    assert module.weight.is_meta
    assert device_of(module) == CPU
