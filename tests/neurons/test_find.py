"""The whole search, against a search written out by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from builders.quick import find
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons import scores
from safety_neurons.neurons.capture import capture_sums
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.neurons.read import PLAIN_REFUSAL

WIDTH, LAYERS = 48, 3
ONE_MODEL = [name for name in scores.names() if not scores.get(name).compares_models]


def rows(model: ChatModel, text: str, last: int) -> list[Tensor]:
    """Per layer the activations [last, neurons] at the end of one text."""
    found: list[Tensor] = []
    handles = [
        model.model.get_submodule(hook_point.name).register_forward_pre_hook(
            lambda _module, args: found.append(args[0].detach().reshape(-1, WIDTH)[-last:])
        )
        for hook_point in model.hook_points
    ]
    with torch.no_grad():
        model.model(input_ids=model.encode([text])["input_ids"], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def together(model: ChatModel, pairs: list[tuple[str, int]]) -> list[Tensor]:
    """Per layer the activations of all texts, each at its last tokens."""
    each = [rows(model, text, last) for text, last in pairs]
    return [torch.cat([one[layer] for one in each]) for layer in range(LAYERS)]


def top(values: Tensor, count: int) -> set[int]:
    return set(values.argsort(descending=True)[:count].tolist())


def as_sets(side: tuple[Tensor, ...]) -> list[set[int]]:
    return [set(layer.tolist()) for layer in side]


def same(one: NeuronSet, other: NeuronSet) -> bool:
    return as_sets(one.rejection) == as_sets(other.rejection) and as_sets(one.conformity) == as_sets(other.conformity)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_the_papers_search(
    name: str, harmful: list[str], benign: list[str], make_model: Callable[..., ChatModel]
) -> None:
    model = make_model(name)
    found = find(model, harmful, benign, score="magnitude", percent=20)
    on_harmful, on_benign = (
        together(model, [(model.render(prompt), 1) for prompt in prompts]) for prompts in (harmful, benign)
    )
    for layer, hook_point in enumerate(model.hook_points):
        norm = hook_point.write_vectors().square().sum(1).sqrt()
        mine, theirs = (top(side[layer].abs().mean(0) * norm, 10) for side in (on_harmful, on_benign))
        assert set(found.rejection[layer].tolist()) == mine - theirs
        assert set(found.conformity[layer].tolist()) == theirs - mine
    assert len(found)


def test_the_default_search_spends_its_budget_over_the_model(
    model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    found = find(model, harmful, benign, percent=10)
    on_harmful, on_benign = (
        together(model, [(model.render(prompt), 1) for prompt in prompts]) for prompts in (harmful, benign)
    )
    means = [torch.cat([layer.mean(0) for layer in side]) for side in (on_harmful, on_benign)]
    norm = torch.cat([hook_point.write_vectors().square().sum(1).sqrt() for hook_point in model.hook_points])
    chosen = top((means[0] - means[1]).abs() * norm, round(LAYERS * WIDTH * 0.1))
    sides = [set[int](), set[int]()]
    for layer in range(LAYERS):
        for side, indices in zip(sides, (found.rejection[layer], found.conformity[layer]), strict=True):
            side |= {layer * WIDTH + index for index in indices.tolist()}
    assert sides[0] | sides[1] == chosen
    assert sides[0] == {index for index in chosen if abs(means[0][index]) >= abs(means[1][index])}


def test_wanda_looks_at_the_tokens_of_the_answers(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    found = find(model, harmful, benign, score="wanda", percent=20, response_tokens=5)

    def pairs(prompts: list[str], refused: bool) -> list[tuple[str, int]]:
        result = []
        for prompt in prompts:
            answer = PLAIN_REFUSAL if refused else model.chat(prompt, max_new_tokens=5)
            assert answer
            # One token a byte.
            result.append((model.render(prompt, prefill=answer), len(answer.encode())))
        return result

    on_harmful, on_benign = together(model, pairs(harmful, True)), together(model, pairs(benign, False))
    for layer, hook_point in enumerate(model.hook_points):
        norm = hook_point.write_vectors().abs().sum(1)
        mine, theirs = (top(side[layer].square().sum(0).sqrt() * norm, 10) for side in (on_harmful, on_benign))
        assert set(found.rejection[layer].tolist()) == mine - theirs
        assert set(found.conformity[layer].tolist()) == theirs - mine
    assert len(found)


@pytest.mark.parametrize("score", ONE_MODEL)
def test_directions_are_those_of_the_prompts_whatever_the_score(
    score: str, model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    found = find(model, harmful, benign, score=score, percent=5, positions=4, response_tokens=3)
    assert found.directions is not None
    for prompts, side in ((harmful, found.directions.harmful), (benign, found.directions.benign)):
        texts = [model.render(prompt) for prompt in prompts]
        expected = capture_sums(model, texts, positions=4).statistics().by_position
        assert expected is not None
        for mine, theirs in zip(side, expected, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("score", ONE_MODEL)
def test_what_a_set_says_of_itself(score: str, model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    found = find(model, harmful, benign, score=score, percent=10, seed=4, response_tokens=3)
    provenance = found.provenance
    assert (provenance.model, provenance.identity) == (model.name, model.identity)
    assert (provenance.score, provenance.percent, provenance.seed) == (score, 10, 4)
    assert provenance.scope == scores.get(score).scope
    assert provenance.parameters_per_neuron == (3 * 32,) * 3
    assert provenance.parameters_total == model.parameters
    assert found.widths == (WIDTH,) * LAYERS
    assert 0 < len(found) <= 2 * round(LAYERS * WIDTH * 0.1) + LAYERS
    for rejection, conformity in zip(found.rejection, found.conformity, strict=True):
        assert not set(rejection.tolist()) & set(conformity.tolist())
        for side in (rejection, conformity):
            assert side.dtype == torch.int64
            assert side.tolist() == sorted(set(side.tolist()))


def test_routed_and_shared_experts_of_a_layer_share_its_budget(
    make_model: Callable[..., ChatModel], harmful: list[str], benign: list[str]
) -> None:
    found = find(make_model("qwen2_moe"), harmful, benign, percent=10, scope="layer")
    assert [(count.layer, count.width) for count in found.per_layer()] == [(layer, 4 * 16 + 24) for layer in range(3)]
    assert [count.rejection + count.conformity for count in found.per_layer()] == [round(88 * 0.1)] * 3
    assert found.layers == (0, 0, 1, 1, 2, 2)
    assert found.provenance.parameters_per_neuron == (3 * 32,) * 6
    assert found.provenance.coverage == "3/3 layers, 264 neurons"


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_the_scope_can_be_chosen(scope: str, model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    found = find(model, harmful, benign, percent=10, scope=scope)
    counts = [len(layer) for layer in found.both]
    assert found.provenance.scope == scope
    assert sum(counts) == (15 if scope == "layer" else 14)
    assert (counts == [5, 5, 5]) == (scope == "layer")


def test_batches_change_nothing(one_of_each: ChatModel, harmful: list[str], benign: list[str]) -> None:
    benign[0] += " It should be a little longer than the others."
    assert same(
        find(one_of_each, harmful, benign, percent=10, batch_size=1),
        find(one_of_each, harmful, benign, percent=10, batch_size=4),
    )


@pytest.mark.parametrize("score", ONE_MODEL)
def test_the_same_seed_finds_the_same_neurons(
    score: str, model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    first, again, other = (
        find(model, harmful, benign, score=score, percent=10, seed=seed, response_tokens=3) for seed in (1, 1, 2)
    )
    assert same(first, again)
    assert same(first, other) == (score != "random")


def test_swapped_sides_swap_the_neurons(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    found, swapped = find(model, harmful, benign, percent=10), find(model, benign, harmful, percent=10)
    assert as_sets(found.rejection) == as_sets(swapped.conformity)
    assert as_sets(found.conformity) == as_sets(swapped.rejection)


def test_progress_counts_every_prompt(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    steps: list[int] = []
    find(model, harmful, benign, batch_size=4, advance=steps.append)
    assert sum(steps) == len(harmful) + len(benign)


def test_an_empty_set_is_an_error(model: ChatModel, harmful: list[str]) -> None:
    nothing: list[str] = []
    for sides in ((harmful, nothing), (nothing, harmful), (nothing, nothing)):
        with pytest.raises(SafetyNeuronsError, match="empty"):
            find(model, *sides)


def test_an_unknown_score_is_an_error_before_any_work(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_args: object, **_options: object) -> None:
        raise AssertionError("worked before looking")

    monkeypatch.setattr(model.model, "forward", unwanted)
    with pytest.raises(SafetyNeuronsError, match="Did you mean magnitude"):
        find(model, ["a"], ["b"], score="magnitud")


@pytest.mark.parametrize("options", [{"percent": 0}, {"percent": 101}, {"scope": "layers"}, {"positions": 0}])
def test_options_out_of_range_are_an_error(
    options: dict[str, object], model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    with pytest.raises(SafetyNeuronsError):
        find(model, harmful, benign, **options)  # type: ignore[arg-type]
