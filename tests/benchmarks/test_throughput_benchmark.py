"""The parts of benchmarks/throughput.py that could mislead: what is asked, and that both contenders answer it."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from safety_neurons.models.chat import ChatModel


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "throughput.py"
    # A script finds its neighbors beside it.
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("throughput_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.path.remove(str(path.parent))
    return module


def test_prompts_are_many_lengths_in_one_order(benchmark: ModuleType) -> None:
    prompts = benchmark.mixed_prompts(24)
    assert prompts == benchmark.mixed_prompts(24)
    assert len(set(prompts)) == 24
    words = [len(prompt.split()) for prompt in prompts]
    assert words != sorted(words)
    assert sum("Others asked this" not in prompt for prompt in prompts) == 8
    assert max(words) > 20 * min(words)


def test_padding_is_what_fills_the_batches_up(benchmark: ModuleType) -> None:
    assert benchmark.padding([1, 5, 2, 4], [[0, 1], [2, 3]]) == 1 - 12 / 18
    assert benchmark.padding([3, 3, 3], [[0, 1], [2]]) == 0


def test_both_contenders_answer_the_same_prompts(
    benchmark: ModuleType, make_model: Callable[..., ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(max_position_embeddings=4096)
    monkeypatch.setattr(benchmark, "OTHERS", (0, 1, 2))
    result = benchmark.compare(model, count=6, max_new_tokens=4, batch_size=3, rounds=1)
    assert result.same == 6
    assert result.sorted_padding < result.plain_padding < 1
    assert result.time > 0
