"""Positions count from the prompt's end, whatever the padding and the cache do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import PADDING, PromptPositions, cache_argument, cache_of, follow_positions

LEFT = {"input_ids": torch.tensor([[0, 0, 9, 8, 7], [6, 5, 4, 3, 2]]), "mask": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]}


@contextmanager
def steps_of(model: ChatModel) -> Iterator[tuple[PromptPositions, list[Tensor]]]:
    """The offsets of every forward pass while the context is open."""
    steps: list[Tensor] = []
    with follow_positions(model.model) as positions:
        # Registered later, so called later: the offsets are those of the pass that begins.
        def note(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
            steps.append(positions.offsets.clone())

        handle = model.model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield positions, steps
        finally:
            handle.remove()


def ids(model: ChatModel, *texts: str) -> dict[str, Any]:
    return dict(model.encode(list(texts)))


def generate(model: ChatModel, inputs: dict[str, Any], tokens: int, use_cache: bool = True) -> Tensor:
    output = model.model.generate(
        **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, use_cache=use_cache
    )
    assert isinstance(output, Tensor)
    return output


def naive(mask: list[list[int]]) -> list[list[int]]:
    """A real token's offset is minus the number of real tokens from it to the end."""
    return [[-sum(row[place:]) if row[place] else PADDING for place in range(len(row))] for row in mask]


@pytest.mark.parametrize(
    "mask",
    [
        [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]],
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
        [[0, 1, 1, 1, 0], [1, 1, 1, 1, 0]],
    ],
    ids=["left", "right", "both"],
)
def test_offsets_under_padding(mask: list[list[int]], model: ChatModel) -> None:
    with steps_of(model) as (_, steps), torch.no_grad():
        model.model(input_ids=LEFT["input_ids"], attention_mask=torch.tensor(mask), use_cache=False)
    assert [step.tolist() for step in steps] == [naive(mask)]


def test_offsets_without_a_mask_and_with_positional_input(model: ChatModel) -> None:
    tokens = torch.tensor([[5, 6, 7]])
    with steps_of(model) as (_, steps), torch.no_grad():
        model.model(input_ids=tokens)
        model.model(tokens)
        model.model(inputs_embeds=model.model.get_input_embeddings()(tokens))
    assert [step.tolist() for step in steps] == [[[-3, -2, -1]]] * 3


def test_generated_tokens_count_on_from_zero(any_model: ChatModel) -> None:
    inputs = ids(any_model, "short", "a longer text")
    with steps_of(any_model) as (_, steps):
        generate(any_model, inputs, 4)
    assert steps[0].tolist() == naive(inputs["attention_mask"].tolist())
    assert [step.tolist() for step in steps[1:]] == [[[place], [place]] for place in range(3)]


def test_without_a_cache_the_same_tokens_have_the_same_offsets(any_model: ChatModel) -> None:
    inputs = ids(any_model, "short", "a longer text")
    with steps_of(any_model) as (_, cached):
        first = generate(any_model, inputs, 4)
    with steps_of(any_model) as (_, uncached):
        second = generate(any_model, inputs, 4, use_cache=False)
    assert torch.equal(first, second)
    assert len(cached) == len(uncached) == 4
    for step in range(4):
        assert torch.equal(uncached[step], torch.cat(cached[: step + 1], 1))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("second", ["tell me", "Tell me more", "x"])
def test_a_new_prompt_starts_anew(second: str, use_cache: bool, model: ChatModel) -> None:
    with steps_of(model) as (_, steps):
        generate(model, ids(model, "tell me"), 3, use_cache)
        seen = len(steps)
        generate(model, ids(model, second), 3, use_cache)
    assert steps[seen].tolist() == [list(range(-len(second), 0))]
    assert steps[-1][0, -1] == 1


def test_a_new_prompt_that_extends_the_old_one_starts_anew(model: ChatModel) -> None:
    with steps_of(model) as (_, steps):
        generate(model, ids(model, "tell"), 3)
        generate(model, ids(model, "tell me"), 1)
    assert steps[-1].tolist() == [list(range(-7, 0))]


def test_a_prompt_after_a_cached_prefix_starts_anew(model: ChatModel) -> None:
    """The prefix was read before anybody followed; what comes now is the prompt."""
    with torch.no_grad():
        cache = cache_of(model.model(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=True))
        known = {cache_argument(model.model): cache}
        with steps_of(model) as (_, steps):
            model.model(input_ids=torch.tensor([[9, 10, 11]]), **known, use_cache=True)
            model.model(input_ids=torch.tensor([[12]]), **known, use_cache=True)
            model.model(input_ids=torch.tensor([[13, 14]]), **known, use_cache=True)
    assert [step.tolist() for step in steps] == [[[-3, -2, -1]], [[0]], [[1, 2]]]


def test_a_pass_that_continues_from_what_cannot_be_seen_is_an_error(model: ChatModel) -> None:
    """As when a new release of transformers gives the cache another name: no position would be right."""
    where = PromptPositions()
    hidden = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.ones(1, 5), "their_cache": object()}
    with pytest.raises(SafetyNeuronsError, match="unknown tokens"):
        where.enter(model.model, (), hidden)


def test_a_batch_of_another_size_starts_anew(model: ChatModel) -> None:
    with steps_of(model) as (_, steps):
        generate(model, ids(model, "one", "three"), 2)
        generate(model, ids(model, "four"), 2)
    assert [step.shape[0] for step in steps] == [2, 2, 1, 1]
    assert steps[2].tolist() == [[-4, -3, -2, -1]]
    assert steps[3].tolist() == [[0]]


def test_following_ends_with_the_context_also_after_an_exception(model: ChatModel) -> None:
    def interrupted() -> None:
        with follow_positions(model.model):
            assert len(model.model._forward_pre_hooks) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert not model.model._forward_pre_hooks
