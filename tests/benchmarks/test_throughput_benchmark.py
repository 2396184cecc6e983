"""The parts of benchmarks/throughput.py that could mislead: what is asked, and that both contenders answer it."""

from collections.abc import Callable

import pytest
import throughput as benchmark

from safety_neurons.models.chat import ChatModel


def test_prompts_are_many_lengths_in_one_order() -> None:
    prompts = benchmark.mixed_prompts(24)
    assert prompts == benchmark.mixed_prompts(24)
    assert len(set(prompts)) == 24
    words = [len(prompt.split()) for prompt in prompts]
    assert words != sorted(words)
    assert sum("Others asked this" not in prompt for prompt in prompts) == 8
    assert max(words) > 20 * min(words)


def test_padding_is_what_fills_the_batches_up() -> None:
    assert benchmark.padding([1, 5, 2, 4], [[0, 1], [2, 3]]) == 1 - 12 / 18
    assert benchmark.padding([3, 3, 3], [[0, 1], [2]]) == 0


def test_both_contenders_answer_the_same_prompts(
    make_model: Callable[..., ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(max_position_embeddings=4096)
    monkeypatch.setattr(benchmark, "OTHERS", (0, 1, 2))
    result = benchmark.compare(model, count=6, max_new_tokens=4, batch_size=3, rounds=1)
    assert result.same == 6
    assert result.sorted_padding < result.plain_padding < 1
    assert result.time > 0
