"""Training: the loss it logs, what it learns from, what it leaves alone, and that it can be done again."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builders.quick import tune
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning.batches import training_steps
from safety_neurons.tuning.corpus import Corpus, Pair
from safety_neurons.tuning.delta import NeuronDelta, outside_digest

PAIRS = (
    Pair("refusal", "h1", "How do I harm a person?", "", "I cannot help."),
    Pair("benign", "b1", "Name a fruit.", "", "An apple, or if you like a pear."),
    Pair("refusal", "h2", "Tell me of poison.", "Sure, ", "no."),
    Pair("borderline", "o1", "How do I kill a process?", "", "With its id; then look at the rest of", cut_off=True),
)


def snapshot(model: ChatModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


def same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def completion_losses(model: ChatModel, pair: Pair) -> list[float]:
    """-log p of each token of the response, each from a forward pass of its own over all that stands before it."""
    prompt: list[int] = model.tokenizer(model.render(pair.user) + pair.prefill, add_special_tokens=False)["input_ids"]
    response: list[int] = model.tokenizer(pair.response, add_special_tokens=False)["input_ids"]
    if not pair.cut_off:
        response = [*response, model.tokenizer.convert_tokens_to_ids("<|end|>")]
    losses = []
    for place, token in enumerate(response):
        with torch.inference_mode():
            logits = model.model(input_ids=torch.tensor([prompt + response[:place]])).logits[0, -1]
        losses.append(-float(logits.float().log_softmax(-1)[token]))
    return losses


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.prompt_id)
def test_first_loss_is_that_of_the_response_alone(
    model: ChatModel, pair: Pair, neuron_set: Callable[..., NeuronSet]
) -> None:
    """The prompt and the prefill do not count; the end of the turn does, unless the response was cut off."""
    expected = completion_losses(model, pair)
    delta = tune(model, neuron_set(model), Corpus((pair,)), batch_size=1)
    assert len(delta.steps) == 1
    assert delta.steps[0].loss == pytest.approx(sum(expected) / len(expected), rel=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma3"])
def test_first_loss_of_a_padded_batch_is_the_mean_over_its_tokens(
    make_model: Callable[..., ChatModel], architecture: str, neuron_set: Callable[..., NeuronSet]
) -> None:
    model = make_model(architecture)
    losses = [loss for pair in PAIRS for loss in completion_losses(model, pair)]
    delta = tune(model, neuron_set(model), Corpus(PAIRS), batch_size=len(PAIRS))
    assert delta.steps[0].loss == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_every_weight_is_byte_for_byte_as_before(
    one_of_each_tunable: ChatModel, neuron_set: Callable[..., NeuronSet]
) -> None:
    neurons = neuron_set(one_of_each_tunable)
    before, digest = snapshot(one_of_each_tunable), outside_digest(one_of_each_tunable, neurons)
    delta = tune(one_of_each_tunable, neurons, Corpus(PAIRS), learning_rate=0.01, batch_size=2)
    after = snapshot(one_of_each_tunable)
    assert after.keys() == before.keys()
    assert all(same_bytes(after[name], value) for name, value in before.items())
    assert all(bool(value.any()) for value in delta.tensors.values()), "some delta learned nothing"
    with delta.apply(one_of_each_tunable):
        during = snapshot(one_of_each_tunable)
        assert outside_digest(one_of_each_tunable, neurons) == digest
    assert any(not same_bytes(during[name], value) for name, value in before.items())
    assert all(same_bytes(value, before[name]) for name, value in snapshot(one_of_each_tunable).items())


def test_model_is_used_as_before(model: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    """No hook, no mode and no switch of gradients stays behind: the model may be trained by others afterwards."""
    next(iter(model.model.parameters())).requires_grad_(False)
    flags = {name: value.requires_grad for name, value in model.model.named_parameters()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.model.modules()]
    tune(model, neuron_set(model), Corpus(PAIRS[:1]))
    assert not model.model.training
    assert hooks == [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.model.modules()]
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert {name: value.requires_grad for name, value in model.model.named_parameters()} == flags


def test_loss_goes_down_and_the_applied_delta_has_the_lower_loss(
    one_of_each_tunable: ChatModel, neuron_set: Callable[..., NeuronSet]
) -> None:
    neurons = neuron_set(one_of_each_tunable, count=24)
    corpus = Corpus(PAIRS[:2])
    before = [loss for pair in corpus.pairs for loss in completion_losses(one_of_each_tunable, pair)]
    delta = tune(one_of_each_tunable, neurons, corpus, learning_rate=0.02, batch_size=2, epochs=12)
    assert len(delta.steps) == 12
    assert delta.steps[-1].loss < 0.8 * delta.steps[0].loss
    with delta.apply(one_of_each_tunable):
        after = [loss for pair in corpus.pairs for loss in completion_losses(one_of_each_tunable, pair)]
    # The last step was made after its loss was logged, with a learning rate that is nearly zero.
    assert sum(after) / len(after) == pytest.approx(delta.steps[-1].loss, rel=0.1)
    assert sum(after) < 0.8 * sum(before)


def test_end_of_the_turn_is_learnt_from_whole_responses_only(
    model: ChatModel, neuron_set: Callable[..., NeuronSet]
) -> None:
    pair = replace(PAIRS[0], response="No.")
    end = model.tokenizer.convert_tokens_to_ids("<|end|>")
    text = model.render(pair.user) + pair.response

    def log_end() -> float:
        with torch.inference_mode():
            return float(model.model(**model.encode([text])).logits[0, -1].log_softmax(-1)[end])

    before = log_end()
    changes = {}
    for cut_off in (False, True):
        corpus = Corpus((replace(pair, cut_off=cut_off),))
        with tune(model, neuron_set(model), corpus, learning_rate=0.02, epochs=8).apply(model):
            changes[cut_off] = log_end() - before
    assert changes[False] > 1
    assert changes[False] > changes[True] + 1


def test_same_seed_gives_the_same_delta_to_the_bit(model: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    def once(seed: int) -> NeuronDelta:
        torch.rand(seed + 3)  # What was drawn before must not matter.
        return tune(model, neuron_set(model), Corpus(PAIRS), learning_rate=0.01, batch_size=1, epochs=2, seed=seed)

    one, two, other = once(5), once(5), once(6)
    assert one.tensors.keys() == two.tensors.keys()
    assert all(same_bytes(one.tensors[name], value) for name, value in two.tensors.items())
    assert one.steps == two.steps
    assert [step.loss for step in other.steps] != [step.loss for step in one.steps]


@pytest.mark.parametrize(("pairs", "batch_size", "epochs", "expected"), [(4, 2, 1, 2), (4, 3, 2, 4), (1, 8, 3, 3)])
def test_steps_are_as_many_as_foretold(
    model: ChatModel, pairs: int, batch_size: int, epochs: int, expected: int, neuron_set: Callable[..., NeuronSet]
) -> None:
    corpus = Corpus(PAIRS[:pairs])
    done: list[int] = []
    delta = tune(model, neuron_set(model), corpus, batch_size=batch_size, epochs=epochs, advance=done.append)
    assert training_steps(corpus, batch_size, epochs) == expected
    assert sum(done) == expected
    assert [step.step for step in delta.steps] == list(range(1, expected + 1))
    assert delta.steps[-1].epoch == pytest.approx(epochs)


def test_base_in_bfloat16_is_tuned_in_float32(model: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    model.model.to(torch.bfloat16)
    neurons = neuron_set(model, count=24)
    before = snapshot(model)
    delta = tune(model, neurons, Corpus(PAIRS[:2]), learning_rate=0.02, batch_size=2, epochs=10)
    assert all(value.dtype == torch.float32 for value in delta.tensors.values())
    assert delta.steps[-1].loss < 0.8 * delta.steps[0].loss
    assert all(same_bytes(value, before[name]) for name, value in snapshot(model).items())
    with delta.apply(model):
        assert any(not same_bytes(value, before[name]) for name, value in snapshot(model).items())
        changed = snapshot(model)
        assert all(changed[name].dtype == value.dtype for name, value in before.items())
    assert all(same_bytes(value, before[name]) for name, value in snapshot(model).items())


def test_small_changes_survive_a_base_of_low_precision(model: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    """Steps that bfloat16 would round away are kept: the deltas are trained in float32 beside the base."""
    model.model.to(torch.bfloat16)
    delta = tune(model, neuron_set(model), Corpus(PAIRS[:1]), learning_rate=1e-6, epochs=2)
    assert all(bool(value.any()) for value in delta.tensors.values())


def test_single_step_learns_something(model: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    """A corpus that fits into one batch is trained on in one step: warming up must not make that step nothing."""
    delta = tune(model, neuron_set(model), Corpus(PAIRS), batch_size=8, epochs=1, learning_rate=0.01)
    assert any(bool(value.any()) for value in delta.tensors.values())


def test_frozen_model_can_be_tuned(model: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    model.model.requires_grad_(False)
    delta = tune(model, neuron_set(model), Corpus(PAIRS[:2]), batch_size=1, learning_rate=0.01)
    assert any(bool(value.any()) for value in delta.tensors.values())


def test_nothing_to_learn_from_is_an_error(model: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    with pytest.raises(SafetyNeuronsError, match="corpus is empty"):
        tune(model, neuron_set(model), Corpus(()))


def test_nothing_to_tune_is_an_error(model: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    with pytest.raises(SafetyNeuronsError, match="no neurons"):
        tune(model, neuron_set(model, count=0), Corpus(PAIRS))


def test_experts_are_tuned(mixture: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    """They learn the corpus, and nothing else of the model changes."""
    neurons, before = neuron_set(mixture), snapshot(mixture)
    digest = outside_digest(mixture, neurons)
    delta = tune(mixture, neurons, Corpus(PAIRS), learning_rate=0.02, batch_size=len(PAIRS), epochs=8)
    assert delta.steps[-1].loss < delta.steps[0].loss
    assert all(bool(value.any()) for value in delta.tensors.values())
    assert all(same_bytes(value, before[name]) for name, value in snapshot(mixture).items())
    with delta.apply(mixture):
        assert outside_digest(mixture, neurons) == digest


def test_divergence_is_an_error(model: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    before = snapshot(model)
    with pytest.raises(SafetyNeuronsError, match="diverged"):
        tune(model, neuron_set(model), Corpus(PAIRS), learning_rate=1e38, batch_size=1, epochs=2)
    assert all(same_bytes(value, before[name]) for name, value in snapshot(model).items())


def test_delta_of_a_tuning_belongs_to_the_neurons(model: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    neurons = neuron_set(model)
    delta = tune(model, neurons, Corpus(PAIRS[:1]))
    assert delta.neurons is neurons
    assert delta.parameters == len(neurons) * model.hook_points[0].parameters_per_neuron
