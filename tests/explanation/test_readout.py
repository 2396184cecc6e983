"""Logits of chosen tokens and of negated writes, against the model's own unembedding."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safety_neurons.explanation.lexicon import VocabularyMeter
from safety_neurons.explanation.readout import Readout
from safety_neurons.models.chat import ChatModel

TOKENS = [3, 250, 0, 17]


def writes(rows: int = 6) -> Tensor:
    return torch.randn(rows, 32, generator=torch.Generator().manual_seed(5))


def with_bias(model: ChatModel) -> ChatModel:
    head = model.model.get_output_embeddings()
    head.bias = nn.Parameter(torch.linspace(-2, 2, len(head.weight)).to(head.weight))
    return model


def unreadable(model: ChatModel) -> ChatModel:
    """An unembedding that is no linear layer to the library, like one in a quantized model."""

    class Head(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.weight, self.inner = inner.weight, inner

        def forward(self, hidden: Tensor) -> Tensor:
            logits: Tensor = self.inner(hidden)
            return logits

    model.model.set_output_embeddings(Head(model.model.get_output_embeddings()))
    return model


def test_chosen_tokens_have_the_logits_of_the_whole_vocabulary(any_model: ChatModel) -> None:
    readout = Readout.of(any_model)
    expected = any_model.model.get_output_embeddings()(readout.normed(writes())).detach()[:, TOKENS]
    torch.testing.assert_close(readout.of_tokens(TOKENS).logits(writes()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [with_bias, unreadable])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_unembedding_is_read(
    change: Callable[[ChatModel], ChatModel], dtype: torch.dtype, model: ChatModel
) -> None:
    model.model.to(dtype)
    readout = Readout.of(change(model))
    expected = model.model.get_output_embeddings()(readout.normed(writes())).detach().float()[:, TOKENS]
    found = readout.of_tokens(TOKENS).logits(writes())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [lambda model: model, with_bias, unreadable])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt", "gpt_neox", "gpt_oss"])
def test_negated_writes_are_measured_as_such(
    name: str, change: Callable[[ChatModel], ChatModel], make_worded: Callable[..., ChatModel]
) -> None:
    meter = VocabularyMeter.of(Readout.of(change(make_worded(name))), torch.Generator())
    up, down = meter.measure_both(writes())
    for found, expected in ((up, meter.measure(writes())), (down, meter.measure(-writes()))):
        assert found.keys() == expected.keys()
        for lexicon, separation in found.items():
            for values, wanted in zip(separation, expected[lexicon], strict=True):
                np.testing.assert_allclose(values, wanted, atol=1e-9)


def test_negated_logits_are_used_only_where_they_are_those_of_the_negated_writes(
    make_worded: Callable[..., ChatModel],
) -> None:
    def odd(model: ChatModel) -> bool:
        return Readout.of(model).of_tokens(TOKENS).is_odd(writes())

    assert odd(make_worded("llama"))
    # The final norm of GPT-2 has a bias.
    assert not odd(make_worded("gpt2"))
    assert not odd(with_bias(make_worded("llama")))
    assert not odd(unreadable(make_worded("llama")))
