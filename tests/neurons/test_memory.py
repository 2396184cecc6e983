"""Memory that runs out: on the way through the model, or while write vectors are unpacked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from builders.quick import find
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import halve_when_full
from safety_neurons.models.neurons.hook_points import DenseHookPoint
from safety_neurons.neurons import capture as capturing
from safety_neurons.neurons.capture import capture_sums
from safety_neurons.neurons.neuron_set import NeuronSet

FULL = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 1 bytes"),
    "python": MemoryError(),
}


def full_above(
    limit: int, error: BaseException, sizes: list[int], work: Callable[..., Any]
) -> Callable[[ChatModel, Any], Any]:
    """A forward pass that has memory for so many prompts."""

    def forward(model: Any, inputs: Any, **options: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        result = work(model, inputs, **options)
        # After the hooks have seen the activations: what was counted of this pass must not count twice.
        if sizes[-1] > limit:
            raise error
        return result

    return forward


@pytest.mark.parametrize("limit", [1, 2, 4])
@pytest.mark.parametrize("kind", sorted(FULL))
def test_statistics_are_the_same_in_smaller_batches(
    kind: str, limit: int, model: ChatModel, harmful: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [model.render(text) for text in harmful]
    expected = capture_sums(model, texts, tail=None, positions=3, batch_size=6).statistics()
    sizes: list[int] = []
    monkeypatch.setattr(capturing, "forward", full_above(limit, FULL[kind], sizes, capturing.forward))
    found = capture_sums(model, texts, tail=None, positions=3, batch_size=6).statistics()
    assert sizes[0] == 6
    assert sum(size for size in sizes if size <= limit) == 6
    for name, value in vars(expected).items():
        values = [value] if name == "prompts" else value
        others = [found.prompts] if name == "prompts" else getattr(found, name)
        for mine, theirs in zip(others, values, strict=True):
            assert torch.allclose(torch.as_tensor(mine), torch.as_tensor(theirs), atol=1e-6), name


@pytest.mark.parametrize("score", ["write-contrast", "wanda"])
def test_the_neurons_are_the_same_in_smaller_batches(
    score: str, model: ChatModel, harmful: list[str], benign: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where answers are generated, and where the write vectors do not fit at once."""

    def neurons() -> NeuronSet:
        return find(model, harmful, benign, score=score, percent=10, batch_size=6, response_tokens=4)

    expected = neurons()
    sizes: list[int] = []
    monkeypatch.setattr(capturing, "forward", full_above(2, FULL["gpu"], sizes, capturing.forward))
    generating = type(model.model).generate
    raw = DenseHookPoint.raw_write_vectors
    widths: list[int] = []

    def generate(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        if len(input_ids) > 2:
            raise FULL["gpu"]
        return generating(self, input_ids=input_ids, **options)

    def raw_write_vectors(self: DenseHookPoint, some: torch.Tensor | None = None) -> torch.Tensor:
        widths.append(self.width if some is None else len(some))
        if widths[-1] > 20:
            raise FULL["cpu"]
        return raw(self, some)

    monkeypatch.setattr(type(model.model), "generate", generate)
    monkeypatch.setattr(DenseHookPoint, "raw_write_vectors", raw_write_vectors)
    found = neurons()
    assert max(sizes) > 2 >= min(sizes)
    assert max(widths) > 20 >= min(widths)
    assert all(map(torch.equal, found.both, expected.both))
    assert len(found)


def test_other_failures_are_not_taken_for_full_memory() -> None:
    def work(_batch: list[int]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        halve_when_full(work, [1, 2])


@pytest.mark.parametrize("kind", sorted(FULL))
def test_full_memory_with_a_single_prompt_is_an_error_that_names_ways_out(kind: str) -> None:
    def work(_batch: list[int]) -> None:
        raise FULL[kind]

    with pytest.raises(SafetyNeuronsError, match=r"dtype bfloat16.*4bit.*device_map auto"):
        halve_when_full(work, [1, 2])
