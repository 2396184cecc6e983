"""A packed row gives each sequence what it gives alone."""

from collections.abc import Callable

import pytest
import torch

from safety_neurons.models import packing
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.packing import can_pack, pack
from safety_neurons.models.shared_prefix import can_share

TEXTS = ["You answer briefly. Why?", "You answer briefly. Tell me about the sea.", "You answer briefly."]


def test_logits_are_those_of_the_sequences_alone(any_model: ChatModel) -> None:
    if any_model.name.endswith("bloom"):
        pytest.skip("ALiBi models compute their bias from a mask of padding.")
    inputs = any_model.encode(TEXTS)
    packed = pack(any_model.model, inputs)
    assert packed.inputs["input_ids"].shape[1] < int(inputs["attention_mask"].sum())
    with torch.inference_mode():
        found = forward(any_model.model, packed.inputs, last_logits=0).logits[0]
        for row, text in enumerate(TEXTS):
            alone = forward(any_model.model, any_model.encode([text]), last_logits=0).logits[0]
            own = found[packed.places[row, -len(alone) :]]
            torch.testing.assert_close(own, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "texts", [["Hello."], ["a", "a"], ["abc", "x"], ["same", "same and more"]], ids=["one", "equal", "apart", "inside"]
)
def test_places_are_those_of_the_tokens(texts: list[str], model: ChatModel) -> None:
    inputs = model.encode(texts)
    packed = pack(model.model, inputs)
    flat = packed.inputs["input_ids"].flatten()
    real = inputs["attention_mask"].bool()
    assert torch.equal(flat[packed.places[real]], inputs["input_ids"][real])


def test_long_sequences_stay_apart(make_model: Callable[..., ChatModel]) -> None:
    """Attention over one row costs the square of all sequences together."""
    model = make_model(max_position_embeddings=1024)
    texts = ["ab" * 300, "cd" * 300, "ef" * 299]
    assert pack(model.model, model.encode(texts)).inputs["input_ids"].shape == (3, 600)


def test_a_model_that_cannot_pack_reads_padded_batches(make_model: Callable[..., ChatModel]) -> None:
    bloom = make_model("bloom")
    assert not can_pack(bloom.model, 10)
    assert pack(bloom.model, bloom.encode(TEXTS)).inputs["input_ids"].shape[0] == len(TEXTS)


def test_other_attention_implementations_do_not_pack(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tried before: it would compile the other implementation, which takes a minute.
    assert can_share(model.model, 10)
    monkeypatch.setattr(model.model.config, "_attn_implementation_internal", "flex_attention")
    assert not can_pack(model.model, 10)
    assert model.model not in packing._known
