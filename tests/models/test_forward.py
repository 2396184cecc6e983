"""The one forward pass: padding changes nothing, and no logits are computed that nobody asked for."""

import pytest
import torch

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import cache_of, forward

TEXTS = ["Hi", "A prompt of some length", "Another one"]


def test_left_padded_batch_gives_each_text_its_own_logits(any_model: ChatModel) -> None:
    with torch.no_grad():
        batch = forward(any_model.model, any_model.encode(TEXTS)).logits[:, -1]
        for row, text in enumerate(TEXTS):
            # No mask and no positions: what the model does with a plain text.
            alone = any_model.model(input_ids=any_model.encode([text])["input_ids"]).logits[0, -1]
            torch.testing.assert_close(batch[row], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_only_the_last_logits_are_computed(count: int, model: ChatModel) -> None:
    inputs = model.encode(["Some text"])
    with torch.no_grad():
        few = forward(model.model, inputs, last_logits=count).logits
        every = forward(model.model, inputs, last_logits=0).logits
    assert few.shape[1] == count
    assert every.shape[1] == len("Some text")
    torch.testing.assert_close(few, every[:, -count:])


def test_no_cache_is_kept(any_model: ChatModel) -> None:
    with torch.no_grad():
        assert cache_of(forward(any_model.model, any_model.encode(["text"]))) is None
