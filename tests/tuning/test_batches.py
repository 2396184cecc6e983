"""The options of a training: what each does to the loss and the batches, and that bad ones are refused."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from builders.quick import tune
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models import packing
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning.batches import Collator, TokenizedPair, batches, encode, micro_batches, training_steps
from safety_neurons.tuning.config import Training
from safety_neurons.tuning.corpus import Corpus, Pair
from safety_neurons.tuning.delta import NeuronDelta


def examples_of(lengths: list[int]) -> list[TokenizedPair]:
    return [TokenizedPair([5] * length, [-100] * (length - 1) + [5], False) for length in lengths]


@pytest.mark.parametrize(("count", "size", "pool"), [(17, 4, 8), (17, 4, 2), (16, 4, 1), (3, 8, 8), (1, 1, 1)])
def test_each_pass_has_each_pair_once_and_as_many_batches_as_foretold(count: int, size: int, pool: int) -> None:
    lengths = [int(length) for length in torch.randint(2, 50, (count,), generator=torch.Generator().manual_seed(0))]
    planned = batches(examples_of(lengths), Training(batch_size=size, epochs=3, length_pool=pool, seed=4))
    per_pass = -(-count // size)
    assert len(planned) == 3 * per_pass
    passes = [planned[start : start + per_pass] for start in range(0, len(planned), per_pass)]
    assert all(sorted(itertools.chain(*found)) == list(range(count)) for found in passes)
    assert all(sum(len(batch) == size for batch in found) >= per_pass - 1 for found in passes)


def test_pairs_of_a_batch_have_similar_lengths() -> None:
    """Padding is what is left of the sum of lengths; the order is the seed's."""
    lengths = [int(length) for length in torch.randint(5, 200, (200,), generator=torch.Generator().manual_seed(1))]
    examples = examples_of(lengths)

    def padding(pool: int) -> int:
        planned = batches(examples, Training(batch_size=8, length_pool=pool, epochs=1))
        return sum(max(lengths[index] for index in batch) * len(batch) for batch in planned) - sum(lengths)

    assert padding(8) < 0.3 * padding(1)
    one, two, other = (batches(examples, Training(epochs=1, seed=seed)) for seed in (3, 3, 4))
    assert one == two != other
    first, second = (batches(examples, Training(epochs=2))[start : start + 25] for start in (0, 25))
    assert first != second


@pytest.mark.parametrize(("count", "parts"), [(8, 2), (7, 3), (2, 4), (0, 3)])
def test_parts_of_a_batch_are_the_batch(count: int, parts: int) -> None:
    found = micro_batches(range(count), parts)
    assert len(found) == parts
    assert list(itertools.chain(*found)) == list(range(count))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_part_without_a_label_has_one_column_of_them() -> None:
    batch = Collator(0)([TokenizedPair([5, 6, 7], [-100] * 3, False)])
    assert batch["labels"].tolist() == [[-100]]


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_parts_give_the_loss_and_the_delta_of_the_whole_batch(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus, accumulate: int
) -> None:
    """17 pairs in batches of 4: the last batch has fewer pairs than there are parts."""
    options: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.01, "kl": 0.5}
    whole = tune(model, neuron_set(model), corpus, **options)
    parts = tune(model, neuron_set(model), corpus, **options, accumulate=accumulate)
    assert_close(parts, whole)


def assert_close(found: NeuronDelta, expected: NeuronDelta) -> None:
    """To the rounding of float32: AdamW divides by the gradient's size, which makes the least of it larger."""
    assert [step.step for step in found.steps] == [step.step for step in expected.steps]
    assert [step.loss for step in found.steps] == pytest.approx([step.loss for step in expected.steps], rel=1e-5)
    for name, value in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_packed_batches_give_the_delta_of_padded_ones(
    one_of_each: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, neurons = one_of_each, neuron_set(one_of_each)
    # Tiny models have so few weights that their padding costs less than attention over one row.
    monkeypatch.setattr(packing, "_attention_is_cheap", lambda *_: True)
    rows: list[int] = []
    handle = model.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    options: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.01, "kl": 0.5}
    packed = tune(model, neurons, corpus, **options)
    # A batch beyond the attention window of gpt_oss is not packed.
    assert 1 in rows[-4:]
    monkeypatch.setattr(packing, "_attention_is_cheap", lambda *_: False)
    padded = tune(model, neurons, corpus, **options)
    handle.remove()
    assert 4 in rows[-4:]
    assert_close(padded, packed)


def test_memory_that_runs_out_halves_the_batch(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus
) -> None:
    """In the backward pass, when the gradients of the last layers are there already."""
    expected = tune(model, neuron_set(model), corpus, learning_rate=0.01)
    failed: list[int] = []
    head = model.model.get_output_embeddings()

    def small(_module: object, args: tuple[torch.Tensor, ...]) -> None:
        tokens = args[0].shape[:2].numel()

        def backward(_gradient: torch.Tensor) -> None:
            if tokens > (failed or [tokens])[0] / 3:
                failed.append(tokens)
                raise torch.OutOfMemoryError

        if first_layer_input and (embedded := first_layer_input.pop()).requires_grad:
            embedded.register_hook(backward)

    first_layer_input: list[torch.Tensor] = []
    layer = model.model.model.layers[1]
    one = layer.register_forward_pre_hook(lambda _module, args: first_layer_input.append(args[0]))
    two = head.register_forward_pre_hook(small)
    found = tune(model, neuron_set(model), corpus, learning_rate=0.01)
    one.remove()
    two.remove()
    assert len(set(failed)) > 1
    assert_close(found, expected)


def test_layers_that_are_computed_again_give_the_same(
    one_of_each: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus
) -> None:
    model = one_of_each
    packing.can_pack(model.model, 1)
    ran: list[int] = []
    hook_point = model.hook_points[0]
    # Before it runs: a layer is computed again only as far as its gradients need it.
    handle = model.model.get_submodule(hook_point.name).register_forward_pre_hook(lambda *_: ran.append(1))
    options: dict[str, Any] = {"batch_size": 8, "learning_rate": 0.01, "kl": 0.5}
    kept = tune(model, neuron_set(model), corpus, **options)
    once = len(ran)
    again = tune(model, neuron_set(model), corpus, **options, gradient_checkpointing=True)
    handle.remove()
    # The backward passes of eight, eight and one pair run the layers again, and one forward pass looks for them.
    assert len(ran) - once == once + 3 + 1
    assert_close(again, kept)
    assert all("forward" not in module.__dict__ for module in model.model.modules())


def test_divergence_is_zero_at_first_and_holds_the_model_back(
    model: ChatModel, neuron_set: Callable[..., NeuronSet]
) -> None:
    pair = Pair("benign", "b", "Name a fruit.", "", "An apple.")
    neurons = neuron_set(model, count=24)

    def kl_divergence(delta: NeuronDelta) -> float:
        """KL(base || tuned) of the completion, from the whole texts."""
        tokens, labels, *_ = encode(model, pair)
        found = []
        for context in (None, delta):
            with torch.no_grad():
                if context is None:
                    logits = model.model(torch.tensor([tokens])).logits[0]
                else:
                    with context.apply(model):
                        logits = model.model(torch.tensor([tokens])).logits[0]
            found.append(logits[[place - 1 for place, label in enumerate(labels) if label != -100]].softmax(-1))
        before, after = found
        return float((before * (before / after).log()).sum(-1).mean())

    options: dict[str, Any] = {"learning_rate": 0.01, "batch_size": 1, "epochs": 8, "schedule": "constant"}
    free = tune(model, neurons, Corpus((pair,)), **options)
    held = tune(model, neurons, Corpus((pair,)), **options, kl=5.0)
    assert held.steps[0].loss == pytest.approx(free.steps[0].loss, rel=1e-6)
    assert kl_divergence(held) < 0.3 * kl_divergence(free)
    # The first step is the same for both, since nothing has moved; the second loss has both parts.
    moved = kl_divergence(tune(model, neurons, Corpus((pair,)), **(options | {"epochs": 1})))
    assert moved > 1e-3
    assert held.steps[1].loss - free.steps[1].loss == pytest.approx(5 * moved, rel=1e-2)


def test_refusals_are_not_held_back(model: ChatModel, neuron_set: Callable[..., NeuronSet]) -> None:
    refusals = Corpus(tuple(Pair("refusal", f"r{n}", f"Harm {n}?", "", "I cannot.") for n in range(4)))
    one, two = (tune(model, neuron_set(model), refusals, learning_rate=0.01, epochs=2, kl=kl) for kl in (0.0, 9.0))
    assert all(torch.equal(one.tensors[name], value) for name, value in two.tensors.items())


def test_schedules_differ_and_warmup_delays(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus
) -> None:
    def size(**options: Any) -> float:
        delta = tune(model, neuron_set(model), corpus, batch_size=1, learning_rate=1e-4, **options)
        return sum(float(value.abs().sum()) for value in delta.tensors.values())

    assert size(schedule="constant") > 1.2 * size(schedule="cosine")
    assert size(schedule="constant") > 1.2 * size(schedule="linear")
    assert size(warmup=1.0) < 0.7 * size(warmup=0.0, schedule="constant")


def test_long_gradients_are_scaled_down(model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus) -> None:
    """AdamW hardly feels their length; that of the first steps against later ones it does."""
    one, two = (
        tune(model, neuron_set(model), corpus, batch_size=4, learning_rate=0.01, max_grad_norm=norm)
        for norm in (1e-3, 1e6)
    )
    assert not all(torch.allclose(one.tensors[name], value, rtol=1e-2) for name, value in two.tensors.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size cannot be"),
        ({"batch_size": 1.5}, "batch_size cannot be"),
        ({"epochs": 0}, "epochs cannot be"),
        ({"learning_rate": 0.0}, "learning_rate cannot be 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate cannot be nan"),
        ({"schedule": "square"}, "schedule cannot be 'square': .*'cosine', 'linear' or 'constant'"),
        ({"warmup": 1.5}, "warmup cannot be 1.5"),
        ({"max_grad_norm": -1.0}, "max_grad_norm cannot be"),
        ({"kl": -0.1}, "kl cannot be -0.1"),
        ({"length_pool": 0}, "length_pool cannot be"),
        ({"accumulate": 0}, "accumulate cannot be"),
        ({"accumulate": 9}, "8 pairs cannot be split into 9 parts"),
        ({"checkpoint_every": 0}, "checkpoint_every cannot be"),
        ({"seed": -1}, "seed cannot be"),
        ({"seed": 2**32}, "seed cannot be"),
        ({"report_to": ("nobody",)}, "not 'nobody'"),
        ({"report_to": "wandb"}, "report_to cannot be 'wandb'"),
        ({"learning_rte": 1.0}, "There is no option learning_rte"),
        ({"shard": True}, "there is one"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus, options: dict[str, Any], said: str
) -> None:
    def work(_steps: int) -> None:
        raise AssertionError("training began")

    with pytest.raises(SafetyNeuronsError, match=said):
        tune(model, neuron_set(model), corpus, **options, advance=work)


def test_trackers_are_told_of_the_loss_and_have_to_be_installed(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers
    from transformers.integrations import integration_utils

    heard: list[dict[str, float]] = []

    class Tracker(transformers.TrainerCallback):
        def on_log(self, *_args: Any, logs: dict[str, float], **_: Any) -> None:
            heard.append(dict(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "ours", Tracker)
    with pytest.raises(SafetyNeuronsError, match="does not find the tracker ours"):
        tune(model, neuron_set(model), corpus, report_to=("ours",))
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["ours"])
    delta = tune(model, neuron_set(model), corpus, epochs=2, report_to=("ours",))
    assert [log["loss"] for log in heard if "loss" in log] == [step.loss for step in delta.steps]
    assert [log["epoch"] for log in heard if "loss" in log] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert training_steps(corpus, 8, 2) == 6


def test_a_pair_without_anything_to_learn_is_named(model: ChatModel) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"prompt 'b-1'\) has an empty response"):
        encode(model, Pair("benign", "b-1", "Name a river.", "Sure, ", "", cut_off=True))
    # One that ends at once teaches the end of the turn.
    assert encode(model, Pair("benign", "b-1", "Name a river.", "", "")).labels[-1] == model.tokenizer.eos_token_id


def test_a_pair_that_does_not_fit_the_context_is_named(make_model: Callable[..., ChatModel]) -> None:
    short = make_model(max_position_embeddings=64)
    with pytest.raises(SafetyNeuronsError, match=r"prompt 'b-1'\) has \d+ tokens, more than the context of .* \(64\)"):
        encode(short, Pair("benign", "b-1", "Name a river.", "", "The Rhine, " * 8))
