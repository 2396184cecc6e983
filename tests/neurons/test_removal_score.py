"""SN-Tune's criterion, against every prompt ranked by itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from builders.quick import find
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.hook_points import DenseHookPoint
from safety_neurons.neurons.read import write_norms
from safety_neurons.neurons.scores import Reading, get
from safety_neurons.neurons.scores.removal import measure


def losses(model: ChatModel, text: str, tail: int) -> list[Tensor]:
    """Per site what the MLP's output loses without each neuron, over the last tokens: 2-norms [neurons]."""
    kept: list[Tensor] = []
    handles = [
        hook_point.write.register_forward_pre_hook(lambda _module, args: kept.append(args[0][0, -tail:].detach()))
        for hook_point in model.hook_points
        if isinstance(hook_point, DenseHookPoint)
    ]
    with torch.no_grad():
        model.model(**model.encode([text]), use_cache=False)
    for handle in handles:
        handle.remove()
    found = []
    for hook_point, values in zip(model.hook_points, kept, strict=True):
        vectors = hook_point.write_vectors()
        each = [(values[:, i, None] * vectors[i]).norm() for i in range(hook_point.width)]
        found.append(torch.stack(each))
    return found


def best(ranks: list[int], count: int) -> list[int]:
    return sorted(range(len(ranks)), key=lambda neuron: (ranks[neuron], neuron))[:count]


def reading(model: ChatModel, prompts: list[str], tail: int) -> Reading:
    return Reading(model, [model.render(prompt) for prompt in prompts], tail, write_norms(model), batch_size=4)


@pytest.mark.parametrize("tail", [1, 4])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_kept_are_the_top_neurons_of_every_prompt(
    name: str, tail: int, harmful: list[str], make_model: Callable[..., ChatModel]
) -> None:
    model = make_model(name)
    worst = measure(reading(model, harmful, tail))
    each = [losses(model, model.render(prompt), tail) for prompt in harmful]
    for hook_point, shares in enumerate(worst):
        for count in (1, 5, 12, 30, 48):
            tops = [set(one[hook_point].argsort(descending=True)[:count].tolist()) for one in each]
            kept = {neuron for neuron, share in enumerate(shares.tolist()) if round(share * 48) < count}
            assert kept == set.intersection(*tops)


def test_the_parts_of_a_set_give_the_same_as_the_whole(model: ChatModel, harmful: list[str]) -> None:
    score = get("removal")
    parts = [measure(reading(model, harmful[:2], 1)), measure(reading(model, harmful[2:], 1))]
    for mine, theirs in zip(score.merge(parts, [2, 4]), measure(reading(model, harmful, 1)), strict=True):
        assert torch.equal(mine, theirs)


def test_found_are_the_common_ones_of_harmful_and_not_of_benign_prompts(
    model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    found = find(model, harmful, benign, score="removal", percent=25)
    ranks = []
    for prompts in (harmful, benign):
        each = [losses(model, model.render(prompt), 1) for prompt in prompts]
        ranks.append(
            [
                [max(int((one[hook_point] > one[hook_point][neuron]).sum()) for one in each) for neuron in range(48)]
                for hook_point in range(3)
            ]
        )
    for hook_point in range(3):
        mine, theirs = (set(best(side[hook_point], 12)) for side in ranks)
        assert set(found.rejection[hook_point].tolist()) == mine - theirs
        assert set(found.conformity[hook_point].tolist()) == theirs - mine
    assert len(found)
