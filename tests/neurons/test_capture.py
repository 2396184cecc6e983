"""Streamed statistics, against all activations kept and counted one prompt at a time."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons import capture as capturing
from safety_neurons.neurons.capture import ActivationStatistics, capture_sums

TEXTS = ["Hi there", "A text of middle length", "Tell me about the sea and its fish.", "What?", "Hi there"]
POSITIONS = 3
MEANS = ("mean", "mean_absolute", "mean_square", "variance", "top_share")


def capture(*arguments: Any, **options: Any) -> ActivationStatistics:
    return capture_sums(*arguments, **options).statistics()


Seen = tuple[Tensor, Tensor]
NaiveActivations = Callable[[ChatModel, Tensor], list[Seen]]


def activations(model: ChatModel, text: str, by_hand: NaiveActivations) -> list[Seen]:
    """Per site of one text: activations [tokens, neurons] and which of them there were; no padding, no mask."""
    tokens = model.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    return [(values.double(), routing != 0) for values, routing in by_hand(model, tokens)]


def average(rows: Iterable[Seen]) -> tuple[Tensor, Tensor]:
    """The mean over those that there were, one row after the other, and how many there were."""
    total, count = torch.zeros(1, dtype=torch.float64), torch.zeros(1)
    for values, seen in rows:
        total, count = total + values * seen, count + seen
    return (total / count.clamp_min(1)).float(), count


def naive(
    model: ChatModel, texts: list[str], tails: list[int | None], top: int, by_hand: NaiveActivations
) -> dict[str, Any]:
    everything = [activations(model, text, by_hand) for text in texts]
    result: dict[str, Any] = {name: [] for name in (*MEANS, "count", "by_position")}
    for number in range(len(model.hook_points)):
        chosen = [
            row
            for hook_points, tail in zip(everything, tails, strict=True)
            for row in list(zip(*hook_points[number], strict=True))[-(tail or 1000) :]
        ]
        mean, count = average(chosen)
        result["count"].append(count)
        result["mean"].append(mean)
        result["mean_absolute"].append(average((values.abs(), seen) for values, seen in chosen)[0])
        result["mean_square"].append(average((values * values, seen) for values, seen in chosen)[0])
        result["variance"].append(average(((values - mean) ** 2, seen) for values, seen in chosen)[0])
        by_place = [
            average((hook_points[number][0][place], hook_points[number][1][place]) for hook_points in everything)[0]
            for place in range(-POSITIONS, 0)
        ]
        result["by_position"].append(torch.stack(by_place))
    share = torch.zeros(sum(hook_point.width for hook_point in model.hook_points))
    for hook_points in everything:
        last = torch.cat([values[-1].abs() for values, _ in hook_points]).tolist()
        for neuron in sorted(range(len(last)), key=lambda index: -last[index])[:top]:
            share[neuron] += 1 / len(texts)
    result["top_share"] = share.split([hook_point.width for hook_point in model.hook_points])
    return result


def check(found: ActivationStatistics, expected: dict[str, Any]) -> None:
    for name in (*MEANS, "count", "by_position"):
        for mine, theirs in zip(getattr(found, name), expected[name], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("tail", "tails"),
    [(1, [1] * 5), (3, [3] * 5), (None, [None] * 5), ([1, 4, 2, 5, 3], [1, 4, 2, 5, 3])],
    ids=["last", "three", "all", "one per text"],
)
def test_statistics_are_those_of_all_activations(
    tail: int | list[int] | None,
    tails: list[int | None],
    one_of_each: ChatModel,
    monkeypatch: pytest.MonkeyPatch,
    naive_activations: NaiveActivations,
) -> None:
    monkeypatch.setattr(capturing, "TOP_SHARE", 0.05)
    found = capture(one_of_each, TEXTS, tail=tail, positions=POSITIONS, batch_size=2)
    assert found.prompts == len(TEXTS)
    top = round(0.05 * one_of_each.coverage.neurons)
    check(found, naive(one_of_each, TEXTS, tails, top, naive_activations))


def test_statistics_on_every_architecture(any_model: ChatModel, naive_activations: NaiveActivations) -> None:
    found = capture(any_model, TEXTS, tail=2, positions=POSITIONS)
    check(found, naive(any_model, TEXTS, [2] * len(TEXTS), 1, naive_activations))
    assert all(value.dtype == torch.float32 for value in found.mean)


def test_tokens_are_counted_where_they_were_sent(mixture: ChatModel) -> None:
    """Neurons of one expert have seen the same tokens, and those of all experts together each token twice."""
    found = capture(mixture, TEXTS, tail=None)
    tokens = sum(map(len, TEXTS))
    for hook_point, count in zip(mixture.hook_points, found.count, strict=True):
        experts = count.view(hook_point.blocks, -1)
        assert torch.equal(experts, experts[:, :1].expand_as(experts))
        assert int(experts[:, 0].sum()) == tokens * (2 if hook_point.blocks > 1 else 1)


def test_an_expert_that_sees_no_token_has_zeros(make_model: Callable[..., ChatModel]) -> None:
    model = make_model("gpt_oss")
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name.endswith("router.bias"):
                parameter[3] = -1000
    found = capture(model, TEXTS, tail=None, positions=POSITIONS)
    assert found.by_position is not None
    for statistics in (found.count, found.mean, found.mean_absolute, found.mean_square, found.variance):
        for layer in statistics:
            assert not layer.view(4, -1)[3].any()
            assert layer.view(4, -1)[:3].any(1).all()
    assert not any(layer.view(POSITIONS, 4, -1)[:, 3].any() for layer in found.by_position)


@pytest.mark.parametrize(("left", "right"), [(0, 4), (3, 2)], ids=["right", "both"])
def test_padding_on_any_side_gives_the_same_statistics(
    left: int, right: int, any_model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = capture(any_model, TEXTS, tail=3, positions=POSITIONS)
    encode = ChatModel.encode

    def padded(self: ChatModel, texts: list[str]) -> dict[str, Tensor]:
        """Each text where it would stand with padding on the right, and more padding on either side."""
        inputs = encode(self, texts)
        ids, mask = torch.zeros_like(inputs["input_ids"]), torch.zeros_like(inputs["attention_mask"])
        for row in range(len(ids)):
            real = inputs["attention_mask"][row].bool()
            ids[row, : real.sum()], mask[row, : real.sum()] = inputs["input_ids"][row, real], 1
        sides = (left, right)
        return {
            "input_ids": torch.nn.functional.pad(ids, sides),
            "attention_mask": torch.nn.functional.pad(mask, sides),
        }

    monkeypatch.setattr(ChatModel, "encode", padded)
    found = capture(any_model, TEXTS, tail=3, positions=POSITIONS)
    check(found, vars(expected))


def test_a_tail_longer_than_the_text_is_the_whole_text(model: ChatModel) -> None:
    expected, found = capture(model, TEXTS, tail=None), capture(model, TEXTS, tail=1000)
    assert all((count == sum(map(len, TEXTS))).all() for count in found.count)
    for mine, theirs in zip(found.mean, expected.mean, strict=True):
        assert torch.equal(mine, theirs)


def test_batches_and_order_change_nothing(one_of_each: ChatModel) -> None:
    single = capture(one_of_each, TEXTS, positions=POSITIONS, batch_size=1)
    for texts, size in ((TEXTS, 5), (TEXTS[::-1], 2)):
        batched = capture(one_of_each, texts, positions=POSITIONS, batch_size=size)
        check(batched, vars(single))


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
    def broken(*_args: Any, **_options: Any) -> None:
        raise ZeroDivisionError

    capture(model, TEXTS)
    monkeypatch.setattr(capturing, "forward", broken)
    with pytest.raises(ZeroDivisionError):
        capture(model, TEXTS)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize(("owner", "name", "failing"), [(capturing, "forward", 1), (capturing.Sums, "take", 2)])
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
    check(found, vars(expected))
