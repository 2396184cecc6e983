"""Words, against the projection written out by hand; and what is shown of them."""

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from builders.quick import explain, find
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.explanation.explanation import Explanation, NeuronWords, SideWords
from safety_neurons.explanation.readout import final_norm, readable
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet

HIDDEN = 32
FINAL_NORMS = {
    "llama": "model.norm",
    "gpt2": "transformer.ln_f",
    "gemma2": "model.norm",
    "opt": "model.decoder.final_layer_norm",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "granite": "model.norm",
    "gpt_oss": "model.norm",
    "llava": "model.language_model.norm",
}


def shake(model: ChatModel) -> ChatModel:
    """A gain and a bias of its own for every norm."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.fixture
def neurons(model: ChatModel, harmful: list[str], benign: list[str]) -> NeuronSet:
    return find(model, harmful, benign, percent=10)


def normed(name: str, model: ChatModel, write: Tensor) -> Tensor:
    """The final norm, written out."""
    norm = model.model.get_submodule(FINAL_NORMS[name])
    weight = norm.weight.detach().double()
    if name == "gpt2":
        centerd = write - write.mean()
        return centerd / (centerd.square().mean() + 1e-5).sqrt() * weight + norm.bias.detach().double()
    gain = 1 + weight if name == "gemma2" else weight
    return write / (write.square().mean() + 1e-6).sqrt() * gain


@pytest.mark.parametrize("weighting", ["mean", "difference"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_words_are_the_top_of_the_projection(
    name: str, weighting: str, harmful: list[str], benign: list[str], make_model: Callable[..., ChatModel]
) -> None:
    model = shake(make_model(name))
    neurons = find(model, harmful, benign, percent=20)
    assert neurons.directions is not None
    explanation = explain(model, neurons, words=6, neurons=2, random_sets=0, weighting=weighting)  # type: ignore[arg-type]
    found = {(layer.layer, layer.side): layer for layer in explanation.layers}
    sides = {
        "rejection": (neurons.rejection, neurons.directions.harmful, neurons.directions.benign),
        "conformity": (neurons.conformity, neurons.directions.benign, neurons.directions.harmful),
    }
    checked = 0
    for side, (indices, own, other) in sides.items():
        for layer, hook_point in enumerate(model.hook_points):
            if not len(indices[layer]):
                assert (layer, side) not in found
                continue
            vectors, write = hook_point.write_vectors().double(), torch.zeros(HIDDEN, dtype=torch.float64)
            for neuron in indices[layer].tolist():
                weight = float(own[layer][-1, neuron])
                if weighting == "difference":
                    weight -= float(other[layer][-1, neuron])
                write += weight * vectors[neuron]
            # A write's length does not count: small ones must not drown in the norm's epsilon.
            write /= write.square().mean().sqrt()
            logits = normed(name, model, write) @ model.model.get_output_embeddings().weight.detach().double().T
            worst = logits.argsort()[:6]
            assert found[layer, side].suppressed == tuple(model.tokenizer.decode([token]) for token in worst.tolist())  # type: ignore[index]
            assert found[layer, side].suppressed_logits == pytest.approx(logits[worst].tolist(), rel=1e-3, abs=1e-3)  # type: ignore[index]
            best = logits.argsort(descending=True)[:6]
            assert found[layer, side].words == tuple(model.tokenizer.decode([token]) for token in best.tolist())  # type: ignore[index]
            assert found[layer, side].logits == pytest.approx(logits[best].tolist(), rel=1e-3, abs=1e-3)  # type: ignore[index]
            strengths = {
                neuron: abs(
                    float(own[layer][-1, neuron]) - float(other[layer][-1, neuron]) * (weighting == "difference")
                )
                * float(vectors[neuron].norm())
                for neuron in indices[layer].tolist()
            }
            strongest = sorted(strengths, key=lambda neuron: -strengths[neuron])[:2]
            single = found[layer, side].neurons  # type: ignore[index]
            assert [(one.layer, one.side, one.hook_point, one.neuron) for one in single] == [
                (layer, side, layer, neuron) for neuron in strongest
            ]
            for one in single:
                assert one.strength == pytest.approx(strengths[one.neuron], rel=1e-3)
                alone = normed(name, model, one.weight * vectors[one.neuron] * 1e3)
                order = (alone @ model.model.get_output_embeddings().weight.detach().double().T).argsort()
                assert one.promoted == tuple(model.tokenizer.decode([token]) for token in order.flip(0)[:6].tolist())
                assert one.suppressed == tuple(model.tokenizer.decode([token]) for token in order[:6].tolist())
            checked += 1
    assert checked == len(found) > 2
    assert explanation.weighting == weighting


@pytest.mark.parametrize(("name", "where"), FINAL_NORMS.items())
def test_the_final_norm_is_found(name: str, where: str, make_model: Callable[..., ChatModel]) -> None:
    model = make_model(name)
    assert final_norm(model) is model.model.get_submodule(where)


def test_the_final_norm_is_found_on_every_architecture(any_model: ChatModel) -> None:
    """What it makes of the last layer's output is what the unembedding reads."""
    norm, seen = final_norm(any_model), dict[str, Tensor]()
    unembedding = any_model.model.get_output_embeddings()

    def returned(_module: nn.Module, _args: object, output: Tensor) -> None:
        seen["returned"] = output

    def read(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["read"] = args[0]

    handles = [norm.register_forward_hook(returned), unembedding.register_forward_pre_hook(read)]
    with torch.no_grad():
        any_model.model(input_ids=torch.tensor([[5, 6, 7]]))
    for handle in handles:
        handle.remove()
    assert torch.equal(seen["returned"], seen["read"])
    assert "norm" in type(norm).__name__.lower()


def test_nothing_of_the_search_for_the_norm_is_left(model: ChatModel) -> None:
    final_norm(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def last_tokens(model: ChatModel, layer: int, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Mean input and mean output of a layer's write matrix at the prompt's last token."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.model.model.layers[layer].mlp.down_proj.register_forward_hook(
        lambda _module, args, output: seen.append((args[0][0, -1].double(), output[0, -1].double()))
    )
    for prompt in prompts:
        inputs = model.tokenizer(model.render(prompt), return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            model.model(input_ids=inputs, use_cache=False)
    handle.remove()
    read, written = (torch.stack(part).mean(0) for part in zip(*seen, strict=True))
    return read, written


def test_shares_are_of_what_the_mlps_write(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    neurons = find(model, harmful, benign, percent=20)
    shares = {(share.layer, share.weighting): share for share in explain(model, neurons, random_sets=0).shares}
    assert len(shares) == 2 * len(model.hook_points)
    for layer, found in enumerate(neurons.both):
        (read, whole), (benign_read, benign_whole) = (last_tokens(model, layer, side) for side in (harmful, benign))
        weight = model.model.model.layers[layer].mlp.down_proj.weight.detach().double()
        for weighting, activations, written in (
            ("mean", read, whole),
            ("difference", read - benign_read, whole - benign_whole),
        ):
            mine = weight[:, found] @ activations[found]
            share = shares[layer, weighting]  # type: ignore[index]
            assert share.neurons == pytest.approx(len(found) / 48)
            assert share.norm == pytest.approx(float(mine.norm() / written.norm()), rel=1e-3)
            assert share.cosine == pytest.approx(float(mine @ written / mine.norm() / written.norm()), abs=1e-3)
            assert share.projection == pytest.approx(share.norm * share.cosine, abs=1e-6)


def test_shares_of_a_set_and_of_all_others_make_one(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    neurons = find(model, harmful, benign, percent=20)
    others = []
    for found in neurons.both:
        free = torch.ones(48, dtype=torch.bool)
        free[found] = False
        others.append(free.nonzero().flatten())
    rest = dataclasses.replace(neurons, rejection=tuple(others), conformity=(torch.zeros(0, dtype=torch.int64),) * 3)
    both = zip(*(explain(model, each, random_sets=0).shares for each in (neurons, rest)), strict=True)
    for mine, theirs in both:
        assert mine.projection + theirs.projection == pytest.approx(1)
        assert mine.neurons + theirs.neurons == pytest.approx(1)


def test_layers_without_neurons_are_left_out(model: ChatModel, neurons: NeuronSet) -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    one = dataclasses.replace(
        neurons, rejection=(empty, torch.tensor([3, 4]), empty), conformity=(empty, empty, torch.tensor([5]))
    )
    found = explain(model, one).layers
    assert [(layer.layer, layer.side, len(layer.words)) for layer in found] == [
        (1, "rejection", 10),
        (2, "conformity", 10),
    ]
    nothing = dataclasses.replace(neurons, rejection=(empty,) * 3, conformity=(empty,) * 3)
    assert explain(model, nothing).layers == ()


def test_logits_fall(model: ChatModel, neurons: NeuronSet) -> None:
    for layer in explain(model, neurons).layers:
        assert list(layer.logits) == sorted(layer.logits, reverse=True)


def test_json_holds_every_word_and_share(model: ChatModel, neurons: NeuronSet) -> None:
    explanation = explain(model, neurons, words=4, neurons=1, random_sets=0)
    written = json.loads(json.dumps(explanation.to_json()))
    assert set(written) == {"words", "write_share"}
    for layer, entry in zip(explanation.layers, written["words"], strict=True):
        assert (entry["layer"], entry["side"]) == (layer.layer, layer.side)
        assert tuple(entry["words"]) == layer.words
        assert tuple(entry["suppressed"]) == layer.suppressed
        assert tuple(entry["neurons"][0]["promoted"]) == layer.neurons[0].promoted
    assert [entry["projection"] for entry in written["write_share"]] == [one.projection for one in explanation.shares]


def test_low_precision_models_are_explained(harmful: list[str], benign: list[str], one_of_each: ChatModel) -> None:
    one_of_each.model.to(torch.bfloat16)
    assert explain(one_of_each, find(one_of_each, harmful, benign, percent=10)).layers


def test_neurons_without_directions_are_an_error(model: ChatModel, neurons: NeuronSet) -> None:
    with pytest.raises(SafetyNeuronsError, match="have no directions"):
        explain(model, dataclasses.replace(neurons, directions=None))


def test_neurons_of_a_model_of_another_shape_are_an_error(model: ChatModel, neurons: NeuronSet) -> None:
    assert neurons.directions is not None
    directions = dataclasses.replace(
        neurons.directions, harmful=neurons.directions.harmful[:2], benign=neurons.directions.benign[:2]
    )
    other = dataclasses.replace(
        neurons,
        rejection=neurons.rejection[:2],
        conformity=neurons.conformity[:2],
        widths=neurons.widths[:2],
        layers=neurons.layers[:2],
        directions=directions,
    )
    with pytest.raises(SafetyNeuronsError, match=neurons.provenance.model):
        explain(model, other)


def test_a_model_without_unembedding_is_an_error(
    model: ChatModel, neurons: NeuronSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.model, "get_output_embeddings", lambda: None)
    with pytest.raises(SafetyNeuronsError, match=f"{model.name} has no unembedding"):
        explain(model, neurons)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" sorry", "sorry"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u2066b", "a\\u2066b"),
        ("a\rb\x07\x9b", "a\\rb\\x07\\x9b"),
        ("\n", "\\n"),
        (" ", " "),
        ("\ud800", "\\ud800"),
        ("中文 ñ 🙂", "中文 ñ 🙂"),
        ("it's", "it's"),
    ],
)
def test_readable(token: str, shown: str) -> None:
    assert readable(token) == shown


def test_everything_readable_is_printable() -> None:
    for start in range(0, 0x110000, 0x100):
        text = readable("".join(map(chr, range(start, start + 0x100, 5))))
        assert text.isprintable(), hex(start)


def test_a_printed_explanation_cannot_steer_the_terminal() -> None:
    words = ("[bold red]I", "\x1b[2J", "\u202e", "[/]", " can't")
    alone = NeuronWords(4, "rejection", 4, 7, 1.0, 1.0, words, words)
    logits = (5.0, 4.0, 3.0, 2.0, 1.0)
    shown = Explanation((SideWords(4, "rejection", words, logits, words, logits, (alone,)),), "mean")
    text = str(shown)
    assert text.count("[bold red]I \\x1b[2J \\u202e [/] can't") == 4
    assert "\u202e" not in text
    console = Console(width=110, force_terminal=True, color_system="truecolor")
    with console.capture() as captured:
        console.print(shown)
    assert "\x1b[2J" not in captured.get()
    assert "[bold red]I" in captured.get()


def test_both_sides_of_a_layer_share_a_line() -> None:
    layers = (
        SideWords(3, "rejection", ("sorry",), (1.0,)),
        SideWords(3, "conformity", ("sure",), (1.0,)),
        SideWords(5, "conformity", ("here",), (1.0,)),
    )
    lines = str(Explanation(layers, "difference")).splitlines()
    assert sum("sorry" in line and "sure" in line and "3" in line for line in lines) == 1
    assert sum("here" in line and "5" in line for line in lines) == 1
