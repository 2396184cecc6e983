"""Streamed statistics, against all activations kept and counted one prompt at a time."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from safety_neurons.find import capture as capturing
from safety_neurons.find.capture import ActivationStatistics, capture
from safety_neurons.models.chat import ChatModel

TEXTS = ["Hi there", "A text of middle length", "Tell me about the sea and its fish.", "What?", "Hi there"]
POSITIONS = 3
FIELDS = ("count", "mean", "mean_absolute", "mean_square", "variance", "by_position", "top_share")


@contextlib.contextmanager
def kept(model: ChatModel) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    handles = [
        site.write.register_forward_pre_hook(  # type: ignore[attr-defined]
            lambda _module, args, width=site.width: found.append(args[0].detach().reshape(-1, width).double())
        )
        for site in model.sites
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def activations(model: ChatModel, text: str) -> list[Tensor]:
    """Per layer [tokens, neurons] of one text: no padding, no mask, no positions."""
    tokens = model.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad(), kept(model) as found:
        model.model(input_ids=tokens, use_cache=False)
    return found


def average(rows: Iterable[Tensor]) -> Tensor:
    """One row after the other."""
    total, count = torch.zeros(1, dtype=torch.float64), 0
    for row in rows:
        total, count = total + row, count + 1
    return (total / count).float()


def naive(model: ChatModel, texts: list[str], tails: list[int | None], top: int) -> dict[str, Any]:
    everything = [activations(model, text) for text in texts]
    result: dict[str, Any] = {name: [] for name in FIELDS}
    for layer in range(len(model.sites)):
        chosen = [
            row
            for layers, tail in zip(everything, tails, strict=True)
            for row in (layers[layer] if tail is None else layers[layer][-tail:])
        ]
        result["count"].append(torch.full((model.sites[layer].width,), float(len(chosen))))
        result["mean"].append(average(chosen))
        result["mean_absolute"].append(average(row.abs() for row in chosen))
        result["mean_square"].append(average(row * row for row in chosen))
        result["variance"].append(torch.stack(chosen).var(0, correction=0).float())
        result["by_position"].append(
            torch.stack([average(layers[layer][place] for layers in everything) for place in range(-POSITIONS, 0)])
        )
    share = torch.zeros(sum(site.width for site in model.sites))
    for layers in everything:
        last = torch.cat([layer[-1].abs() for layer in layers]).tolist()
        for neuron in sorted(range(len(last)), key=lambda index: -last[index])[:top]:
            share[neuron] += 1 / len(texts)
    result["top_share"] = share.split([site.width for site in model.sites])
    return result


def check(found: ActivationStatistics, expected: dict[str, Any]) -> None:
    for name in FIELDS:
        for mine, theirs in zip(getattr(found, name), expected[name], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("tail", "tails"),
    [(1, [1] * 5), (3, [3] * 5), (None, [None] * 5), ([1, 4, 2, 5, 3], [1, 4, 2, 5, 3])],
    ids=["last", "three", "all", "one per text"],
)
def test_statistics_are_those_of_all_activations(
    tail: int | list[int] | None, tails: list[int | None], model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capturing, "TOP_SHARE", 0.05)
    found = capture(model, TEXTS, tail=tail, positions=POSITIONS, batch_size=2)
    assert found.prompts == len(TEXTS)
    check(found, naive(model, TEXTS, tails, top=7))


def test_statistics_on_every_architecture(any_model: ChatModel) -> None:
    found = capture(any_model, TEXTS, tail=2, positions=POSITIONS)
    check(found, naive(any_model, TEXTS, [2] * len(TEXTS), top=1))
    assert all(value.dtype == torch.float32 for value in found.mean)


def test_a_tail_longer_than_the_text_is_the_whole_text(model: ChatModel) -> None:
    expected, found = capture(model, TEXTS, tail=None), capture(model, TEXTS, tail=1000)
    assert found.count[0][0] == expected.count[0][0] == sum(map(len, TEXTS))
    for mine, theirs in zip(found.mean, expected.mean, strict=True):
        assert torch.equal(mine, theirs)


def test_batches_and_order_change_nothing(make_model: Callable[..., ChatModel]) -> None:
    model = make_model("gpt2")
    single = capture(model, TEXTS, positions=POSITIONS, batch_size=1)
    assert single.by_position is not None
    for texts, size in ((TEXTS, 5), (TEXTS[::-1], 2)):
        batched = capture(model, texts, positions=POSITIONS, batch_size=size)
        assert batched.by_position is not None
        for name in FIELDS:
            for mine, theirs in zip(getattr(batched, name), getattr(single, name), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_last_position_is_the_mean_at_the_last_token(model: ChatModel) -> None:
    found = capture(model, TEXTS, tail=1, positions=POSITIONS)
    assert found.by_position is not None
    for mean, by_position in zip(found.mean, found.by_position, strict=True):
        assert by_position.shape == (POSITIONS, 48)
        assert torch.equal(by_position[-1], mean)
    assert capture(model, TEXTS).by_position is None


def test_positions_that_few_texts_have_are_means_over_those(model: ChatModel) -> None:
    """`What?` has five tokens; the sixth from the end is counted for the other texts alone."""
    some = [text for text in TEXTS if len(text) > 5]
    every, longer = capture(model, TEXTS, positions=6).by_position, capture(model, some, positions=6).by_position
    assert every is not None
    assert longer is not None
    for mine, theirs in zip(every, longer, strict=True):
        torch.testing.assert_close(mine[0], theirs[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(mine[1], theirs[1], rtol=1e-4, atol=1e-5)


def test_progress_counts_every_prompt_once(model: ChatModel) -> None:
    steps: list[int] = []
    capture(model, TEXTS, batch_size=2, advance=steps.append)
    assert steps == [2, 2, 1]


def test_no_hook_is_left_also_after_an_exception(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any) -> None:
        raise ZeroDivisionError

    capture(model, TEXTS)
    monkeypatch.setattr(capturing, "forward", broken)
    with pytest.raises(ZeroDivisionError):
        capture(model, TEXTS)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize(("owner", "name", "failing"), [(capturing, "forward", 1), (capturing._Sums, "take", 2)])
def test_a_batch_that_does_not_fit_is_counted_once(
    owner: Any, name: str, failing: int, model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may run out in the model as well as in the second layer's sums, when the first were counted."""
    expected = capture(model, TEXTS, tail=2, positions=POSITIONS)
    original, calls = getattr(owner, name), 0

    def fails_once(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise torch.OutOfMemoryError
        return original(*args, **options)

    monkeypatch.setattr(owner, name, fails_once)
    found = capture(model, TEXTS, tail=2, positions=POSITIONS)
    assert calls > failing
    assert found.by_position is not None
    assert expected.by_position is not None
    for field in FIELDS:
        for mine, theirs in zip(getattr(found, field), getattr(expected, field), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_experts_count_the_tokens_that_were_routed_to_them(make_model: Callable[..., ChatModel]) -> None:
    """Against the activations of each expert, worked out from what reaches it one text at a time."""
    dense = make_model("qwen3")
    torch.manual_seed(0)
    experts_alone = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(**(dense.model.config.to_dict() | {"model_type": "qwen3_moe"} | experts_alone))
    network = AutoModelForCausalLM.from_config(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.15)
    model = ChatModel(network, dense.tokenizer, "tiny-moe", "tiny-moe-0")
    experts = network.model.layers[1].mlp.experts
    rows: dict[int, list[Tensor]] = {expert: [] for expert in range(4)}

    def keep(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        for token in range(len(args[0]))[-2:]:
            for expert in args[1][token].tolist():
                gate, up = (experts.gate_up_proj[expert] @ args[0][token]).chunk(2)
                rows[expert].append((torch.nn.functional.silu(gate) * up).double())

    handle = experts.register_forward_pre_hook(keep)
    with torch.no_grad():
        for text in TEXTS:
            network(model.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"])
    handle.remove()
    found = capture(model, TEXTS, tail=2, positions=POSITIONS, batch_size=2)
    assert len({len(seen) for seen in rows.values()}) > 1
    for expert, seen in rows.items():
        mine = slice(8 * expert, 8 * expert + 8)
        assert found.count[1][mine].tolist() == [len(seen)] * 8
        if seen:
            torch.testing.assert_close(found.mean[1][mine], average(seen), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(
                found.mean_absolute[1][mine], average(row.abs() for row in seen), rtol=1e-3, atol=1e-5
            )
    assert torch.isclose(torch.cat(found.top_share).sum(), torch.tensor(1.0))
