"""The gradient score, against autograd on one unpadded prompt at a time, and against finite differences."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.quick import find
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.hook_points import Activations, DenseHookPoint, activation_hooks
from safety_neurons.neurons.capture import ActivationStatistics
from safety_neurons.neurons.read import measure, write_norms
from safety_neurons.neurons.scores import Evidence, Reading, get
from safety_neurons.neurons.scores import gradient as gradient_module
from safety_neurons.neurons.scores.gradient import SCORE, first_tokens, loss

PROMPTS = ["Hi", "Tell me about the sea.", "What is a very long question about nothing at all?"]


def reading(model: ChatModel, tail: int, batch_size: int = 2) -> Reading:
    return Reading(model, [model.render(prompt) for prompt in PROMPTS], tail, write_norms(model), batch_size=batch_size)


def log_odds_lost(model: ChatModel, text: str, refusing: Sequence[int]) -> Tensor:
    """-log(p / (1 - p)) from the probabilities themselves."""
    logits = model.model(**model.encode([text]), use_cache=False).logits[0, -1]
    mass = logits.double().softmax(-1)[list(refusing)].sum()
    return -(mass / (1 - mass)).log()


def naive(model: ChatModel, text: str, refusing: Sequence[int]) -> list[Tensor]:
    """Per dense site the gradient at every token [tokens, neurons], from autograd alone."""
    kept: list[Tensor] = []

    def keep(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.append(args[0] + torch.zeros_like(args[0]).requires_grad_())
        return (kept[-1],)

    handles = [
        hook_point.write.register_forward_pre_hook(keep)
        for hook_point in model.hook_points
        if isinstance(hook_point, DenseHookPoint)
    ]
    with torch.enable_grad():
        value = log_odds_lost(model, text, refusing)
    for handle in handles:
        handle.remove()
    return [gradient[0] for gradient in torch.autograd.grad(value, kept)]


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_mean_gradients_are_those_of_autograd(name: str, positions: int, make_model: Callable[..., ChatModel]) -> None:
    model = make_model(name)
    found = measure(reading(model, positions), SCORE)
    refusing = first_tokens(model, model.render(PROMPTS[0])).tolist()
    each = [naive(model, model.render(prompt), refusing) for prompt in PROMPTS]
    for hook_point, gradient in enumerate(found):
        expected = sum(one[hook_point][-positions:] for one in each) / len(PROMPTS)
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(gradient, expected.float(), rtol=1e-3, atol=1e-6)


def test_experts_too_by_finite_differences(make_model: Callable[..., ChatModel]) -> None:
    mixture = make_model("mixtral")
    mixture.model.double()
    # Grouped matrix products know no float64.
    mixture.model.set_experts_implementation("eager")
    found = measure(reading(mixture, 1), SCORE)
    refusing = first_tokens(mixture, mixture.render(PROMPTS[0])).tolist()
    # Hooked experts add up in float32, so smaller steps would drown in its rounding.
    step = 1e-2

    def total(number: int, neuron: int, shift: float) -> float:
        def nudge(activations: Activations) -> Tensor | None:
            column = neuron - activations.first
            if not 0 <= column < activations.values.shape[1]:
                return None
            last = activations.of_tokens(torch.arange(tokens)[None] == tokens - 1)
            values = activations.values.clone()
            values[last, column] += shift
            return values

        losses = 0.0
        for prompt in PROMPTS:
            text = mixture.render(prompt)
            tokens = mixture.encode([text])["input_ids"].shape[1]
            with torch.no_grad(), activation_hooks([(mixture.hook_points[number], nudge)]):
                losses += float(log_odds_lost(mixture, text, refusing))
        return losses / len(PROMPTS)

    seen = 0
    for number, gradient in enumerate(found):
        for neuron in range(0, gradient.shape[1], 7):
            difference = (total(number, neuron, step) - total(number, neuron, -step)) / (2 * step)
            assert float(gradient[0, neuron]) == pytest.approx(difference, rel=2e-2, abs=1e-4)
            seen += difference != 0
    # Two of four experts see a token.
    assert seen > 5


def test_the_loss_is_the_log_odds_of_refusing() -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0, 0.0]])
    mass = (math.exp(2.0) + math.exp(0.0)) / sum(math.exp(value) for value in logits[0].tolist())
    assert float(loss(logits, torch.tensor([1, 3]))) == pytest.approx(-math.log(mass / (1 - mass)), rel=1e-5)


def test_refusals_begin_with_these_tokens(model: ChatModel) -> None:
    tokens = first_tokens(model, model.render("Hello"))
    # One token a byte.
    assert {model.tokenizer.decode([token]) for token in tokens.tolist()} == {
        refusal[0] for refusal in gradient_module.REFUSALS
    }


def test_batches_change_nothing_and_parameters_want_no_gradient(model: ChatModel) -> None:
    wanting = [parameter.requires_grad for parameter in model.model.parameters()]
    one, other = (measure(reading(model, 2, batch_size), SCORE) for batch_size in (1, 3))
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert [parameter.requires_grad for parameter in model.model.parameters()] == wanting


def test_full_memory_halves_the_batch(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, sizes = measure(reading(model, 1), SCORE), list[int]()
    original = gradient_module.forward

    def forward(network: object, inputs: dict[str, Tensor], **options: Any) -> object:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("full")
        return original(network, inputs, **options)

    monkeypatch.setattr(gradient_module, "forward", forward)
    for mine, theirs in zip(measure(reading(model, 1), SCORE), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
    assert max(sizes) > 1
    assert all(parameter.requires_grad for parameter in model.model.parameters())


def test_the_best_position_counts_for_the_side_that_is_more_active(model: ChatModel) -> None:
    generator = torch.Generator().manual_seed(0)
    widths = [hook_point.width for hook_point in model.hook_points]

    def draw() -> list[Tensor]:
        return [torch.randn(2, width, generator=generator) for width in widths]

    def statistics(by_position: list[Tensor]) -> ActivationStatistics:
        zeros = [torch.zeros(width) for width in widths]
        mean = [hook_point[-1] for hook_point in by_position]
        return ActivationStatistics(3, zeros, mean, zeros, zeros, zeros, zeros, by_position)

    on_harmful, on_benign, harmful, benign = draw(), draw(), draw(), draw()
    evidence = Evidence(statistics(harmful), statistics(benign), [], [], 0, (on_harmful, on_benign))
    rejection, conformity = get("gradient").compute(evidence)
    for hook_point, width in enumerate(widths):
        for neuron in range(width):
            values = [
                float(
                    (on_harmful[hook_point][place, neuron] + on_benign[hook_point][place, neuron])
                    * (benign[hook_point][place, neuron] - harmful[hook_point][place, neuron])
                )
                for place in range(2)
            ]
            rejects = abs(float(harmful[hook_point][1, neuron])) >= abs(float(benign[hook_point][1, neuron]))
            mine, other = (rejection, conformity) if rejects else (conformity, rejection)
            assert float(mine[hook_point][neuron]) == pytest.approx(max(values), rel=1e-5)
            assert float(other[hook_point][neuron]) == -1


@pytest.mark.parametrize("tokens", ["prompt", "response"])
def test_other_tokens_are_an_error_before_any_work(
    tokens: str, model: ChatModel, harmful: list[str], benign: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.model, "forward", None)
    with pytest.raises(SafetyNeuronsError, match="gradient supports only tokens last"):
        find(model, harmful, benign, score="gradient", tokens=tokens)
