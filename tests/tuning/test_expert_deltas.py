"""Neurons of routed experts are tuned like others: their deltas are rows and columns of the experts' weights."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from builders.quick import tune
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.experts import ExpertHookPoint, ReadBlock, feeding_rows
from safety_neurons.models.neurons.hook_points import DenseHookPoint
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, Provenance
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta, outside_digest
from safety_neurons.tuning.delta_model import DeltaModel
from safety_neurons.tuning.neuron_deltas import DeltaTensors, deltas_added, empty_delta

TEXTS = ["Hello there.", "A longer text, so that the others are padded.", "ab"]

# Beside those of conftest: experts whose matrices are kept in ways of their own.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama4": (
        "Llama4TextConfig",
        {"vocab_size": 261, "hidden_size": 32, "intermediate_size": 24, "intermediate_size_mlp": 48}
        | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        | {"num_local_experts": 4, "num_experts_per_tok": 1, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
        | {"interleave_moe_layer_step": 1},
    ),
    "dbrx": (
        "DbrxConfig",
        {"vocab_size": 261, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512, "pad_token_id": 0}
        | {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "eos_token_id": 1,
            "bos_token_id": None,
        }
        | {"ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}},
    ),
}
MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", *OTHERS]


@pytest.fixture(params=MIXTURES)
def mixture(request: pytest.FixtureRequest, make_model: Callable[..., ChatModel]) -> ChatModel:
    """With biases that are not zero, which would hide mistakes with them."""
    if request.param in OTHERS:
        class_name, options = OTHERS[request.param]
        torch.manual_seed(0)
        config = getattr(transformers, class_name)(**copy.deepcopy(options))
        network = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.15)
        model = ChatModel(network, make_model().tokenizer, request.param, request.param)
    else:
        model = make_model(request.param)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "bias" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def neuron_set(model: ChatModel) -> NeuronSet:
    """Random neurons of every site: of some experts several, of others none."""
    generator = torch.Generator().manual_seed(0)
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    drawn = [torch.randperm(width, generator=generator)[:9] for width in widths]
    each = tuple(hook_point.parameters_per_neuron for hook_point in model.hook_points)
    provenance = Provenance(model.name, model.identity, "by hand", 1.0, "layer", 0, each, model.parameters)
    return NeuronSet(
        tuple(layer[:5].sort().values for layer in drawn),
        tuple(layer[4:].sort().values for layer in drawn),
        widths,
        tuple(hook_point.layer for hook_point in model.hook_points),
        provenance,
        Directions(tuple(torch.zeros(2, width) for width in widths), tuple(torch.ones(2, width) for width in widths)),
    )


def random_delta(model: ChatModel, neurons: NeuronSet) -> DeltaTensors:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.2 for name, value in empty_delta(model, neurons).items()
    }


def owned_by_hand(model: ChatModel, neurons: NeuronSet) -> dict[str, list[tuple[str, tuple[Any, ...]]]]:
    """By the name of a delta: the weight and the index in it of each neuron's row, knowing each architecture.

    gpt-oss keeps its matrices transposed, with gate and up in turns; Llama 4 transposed, one after the other; DBRX the
    experts below each other; the rest as PyTorch does, gate before up.
    """
    kind = model.name.removeprefix("tiny-")
    places: dict[str, list[tuple[str, tuple[Any, ...]]]] = {}

    def put(name: str, weight: str, *index: Any) -> None:
        places.setdefault(name, []).append((weight, index))

    for number, (hook_point, chosen) in enumerate(zip(model.hook_points, neurons.both, strict=True)):
        for neuron in chosen.tolist():
            if isinstance(hook_point, DenseHookPoint):
                put(f"site{number}_write", f"{hook_point.name}.weight", slice(None), neuron)
                for j, read in enumerate(hook_point.reads):
                    put(f"site{number}_read{j}_weight", f"{read.name}.weight", read.offset + neuron)
                continue
            inner = hook_point.width // hook_point.blocks
            expert, i = divmod(neuron, inner)
            if kind == "dbrx":
                put(f"site{number}_write", f"{hook_point.name}.mlp.w2", neuron)
                put(f"site{number}_read0_weight", f"{hook_point.name}.mlp.w1", neuron)
                put(f"site{number}_read1_weight", f"{hook_point.name}.mlp.v1", neuron)
                continue
            for j in range(2):
                row = 2 * i + j if kind == "gpt_oss" else j * inner + i
                index = (expert, slice(None), row) if kind in ("gpt_oss", "llama4") else (expert, row)
                put(f"site{number}_read{j}_weight", f"{hook_point.name}.gate_up_proj", *index)
                if kind == "gpt_oss":
                    put(f"site{number}_read{j}_bias", f"{hook_point.name}.gate_up_proj_bias", expert, row)
            index = (expert, i) if kind in ("gpt_oss", "llama4") else (expert, slice(None), i)
            put(f"site{number}_write", f"{hook_point.name}.down_proj", *index)
    return places


def logits(model: ChatModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.model(**model.encode(TEXTS), use_cache=False).logits
    return found


def snapshot(model: ChatModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.named_parameters()}


def by_hand(model: ChatModel, neurons: NeuronSet, tensors: DeltaTensors) -> dict[str, Tensor]:
    """All weights of the model with the change added entry by entry."""
    weights = snapshot(model)
    places = owned_by_hand(model, neurons)
    assert places.keys() == tensors.keys()
    for name, rows in places.items():
        assert len(rows) == len(tensors[name])
        for (weight, index), change in zip(rows, tensors[name], strict=True):
            weights[weight][index] += change
    return weights


def test_deltas_are_the_rows_and_columns_of_the_experts(mixture: ChatModel) -> None:
    assert any(isinstance(hook_point, ExpertHookPoint) for hook_point in mixture.hook_points)
    neurons = neuron_set(mixture)
    tensors = random_delta(mixture, neurons)
    before = logits(mixture)
    other = replace(mixture, model=copy.deepcopy(mixture.model))
    other.model.load_state_dict(by_hand(mixture, neurons, tensors), strict=False)
    expected = logits(other)
    with deltas_added(mixture, neurons, tensors):
        torch.testing.assert_close(logits(mixture), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(expected, before, atol=1e-2)
    with deltas_added(mixture, neurons, empty_delta(mixture, neurons)):
        torch.testing.assert_close(logits(mixture), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(mixture), before)


def test_applied_delta_changes_its_own_bytes_and_no_other(mixture: ChatModel) -> None:
    neurons = neuron_set(mixture)
    tensors = random_delta(mixture, neurons)
    before, digest, expected = snapshot(mixture), outside_digest(mixture, neurons), by_hand(mixture, neurons, tensors)
    applied = NeuronDelta(neurons, tensors).apply(mixture)
    for name, value in snapshot(mixture).items():
        assert torch.equal(value, expected[name]), name
    assert outside_digest(mixture, neurons) == digest
    applied.remove()
    for name, value in snapshot(mixture).items():
        assert torch.equal(value.view(torch.uint8), before[name].view(torch.uint8)), name


def test_digest_sees_every_outside_weight(mixture: ChatModel) -> None:
    neurons = neuron_set(mixture)
    masks = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in mixture.model.named_parameters()}
    for rows in owned_by_hand(mixture, neurons).values():
        for weight, index in rows:
            masks[weight][index] = True
    digest = outside_digest(mixture, neurons)
    with torch.no_grad():
        for name, parameter in mixture.model.named_parameters():
            for mask, same in ((masks[name], True), (~masks[name], False)):
                entries = mask.nonzero()
                if not len(entries):
                    continue
                entry = tuple(entries[len(entries) // 2].tolist())
                value = parameter[entry].clone()
                parameter[entry] += 0.5
                assert (outside_digest(mixture, neurons) == digest) is same, (name, entry)
                parameter[entry] = value


def test_gradients_are_those_of_the_whole_weights(mixture: ChatModel) -> None:
    """Of transformers' own experts, with all weights learning."""
    neurons = neuron_set(mixture)
    ids = torch.tensor([[7, 9, 30, 41, 5, 66, 70, 8]])
    unfrozen = copy.deepcopy(mixture.model).requires_grad_(True)
    loss = functional.cross_entropy(unfrozen(input_ids=ids, use_cache=False).logits[0, 3:-1], ids[0, 4:])
    loss.backward()
    whole = dict(unfrozen.named_parameters())

    mixture.model.requires_grad_(False)
    delta_model = DeltaModel(mixture, neurons)
    found = delta_model(ids, torch.ones_like(ids), ids[:, 4:])["loss"]
    found.backward()
    torch.testing.assert_close(found, loss, rtol=1e-4, atol=1e-5)
    largest = 0.0
    for name, rows in owned_by_hand(mixture, neurons).items():
        expected = []
        for weight, index in rows:
            gradient = whole[weight].grad
            assert gradient is not None
            expected.append(gradient[index])
        of_deltas = delta_model.delta[name].grad
        assert of_deltas is not None
        torch.testing.assert_close(of_deltas, torch.stack(expected), rtol=1e-3, atol=1e-5, msg=name)
        largest = max(largest, float(of_deltas.abs().max()))
    assert largest > 1e-3
    assert len(owned_by_hand(mixture, neurons)) == len(delta_model.delta)


def test_experts_that_no_token_is_sent_to_learn_nothing(make_model: Callable[..., ChatModel], corpus: Corpus) -> None:
    """Whether all of the chosen ones get none, or some."""
    model = make_model("gpt_oss")
    inner = model.hook_points[0].width // model.hook_points[0].blocks
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name.endswith("router.bias"):
                # The router never chooses the first expert.
                parameter[0] = -1e4
    for last in (0, 1):
        few = torch.tensor([2, 5, last * (inner + 1)]).unique()
        neurons = replace(
            neuron_set(model), rejection=(few,) * len(model.hook_points), conformity=(few[:0],) * len(model.hook_points)
        )
        delta = tune(model, neurons, corpus, learning_rate=0.01)
        for value in delta.tensors.values():
            assert not value[few < inner].any()
            assert bool(value[few >= inner].any()) == bool(last)


def test_every_weight_of_the_neurons_is_tuned(mixture: ChatModel) -> None:
    neurons = neuron_set(mixture)
    count = sum(value.numel() for value in empty_delta(mixture, neurons).values())
    assert count == neurons.parameters


class Layout:
    """Experts of which only the gate matters: six neurons, twelve outputs of the read matrices."""

    count, inner = 1, 6

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        self.activate = gate

    def read_blocks(self, _expert: int) -> tuple[ReadBlock, ...]:
        return (ReadBlock(torch.zeros(12, 3), None),)

    def write_vectors(self, _expert: int) -> Tensor:
        return torch.zeros(6, 3)


ORDER = torch.tensor([7, 0, 3, 11, 2, 9, 4, 1, 10, 5, 8, 6])


@pytest.mark.parametrize(
    ("gate", "rows"),
    [
        (lambda read: functional.silu(read[..., :6]) * read[..., 6:], [range(6), range(6, 12)]),
        (lambda read: functional.silu(read[..., 1::2]) * (read[..., ::2] + 1), [range(0, 12, 2), range(1, 12, 2)]),
        (
            lambda read: functional.silu(read[..., ORDER[:6]]) * read[..., ORDER[6:]],
            [[4, 0, 3, 5, 2, 6], [7, 1, 10, 11, 8, 9]],
        ),
        # Each neuron is fed by its neighbor's row, too; one row feeds nothing; all rows feed one neuron.
        (lambda read: functional.silu(read[..., :6] + read[..., :6].roll(1, -1)) * read[..., 6:], []),
        (lambda read: functional.silu(read[..., :6]) * read[..., 6:] * (torch.arange(6) != 2), []),
        (lambda read: read.sum(-1, keepdim=True) * (torch.arange(6) == 2), []),
    ],
)
def test_which_rows_feed_which_neuron_is_found_by_what_they_move(gate: Any, rows: list[Any]) -> None:
    layout: Any = Layout(gate)
    with torch.inference_mode():
        assert [found.tolist() for found in feeding_rows(layout)] == [list(row) for row in rows]


def test_experts_whose_rows_cannot_be_told_apart_are_not_tuned(
    make_model: Callable[..., ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("mixtral")
    monkeypatch.setattr("safety_neurons.models.neurons.experts.feeding_rows", lambda _layout: ())
    neurons = neuron_set(model)
    for prepare in (DeltaModel, empty_delta, outside_digest):
        with pytest.raises(SafetyNeuronsError, match=r"layers\.0\.mlp\.experts can be found, .*but not tuned"):
            prepare(model, neurons)
