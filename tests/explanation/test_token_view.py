"""Which neurons fire on which token, against all activations kept; and what is shown of it."""

import contextlib
import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console
from torch import Tensor

from builders.quick import find
from builders.runs import run_record
from safety_neurons import cli
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import file_sha256
from safety_neurons.explanation.token_view import trace_tokens
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.hook_points import DenseHookPoint
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.folder import RunFolder

# `safety_neurons.runs` is a function, so this module cannot be imported under another name.
workplace_module = importlib.import_module("safety_neurons.runs.context")
PROMPT = "Tell me [bold]how\x1b[2J to"


@contextlib.contextmanager
def kept(model: ChatModel) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    handles = []
    for hook_point in model.hook_points:
        assert isinstance(hook_point, DenseHookPoint)
        handles.append(
            hook_point.write.register_forward_pre_hook(
                lambda _module, args, width=hook_point.width: found.append(args[0].detach().reshape(-1, width))
            )
        )
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def lean(neurons: NeuronSet, vectors: list[Tensor], activations: list[Tensor]) -> float:
    """Neuron by neuron."""
    assert neurons.directions is not None
    above = below = 0.0
    for layer, indices in enumerate(neurons.both):
        for neuron in indices.tolist():
            harmful, benign = (
                float(means[layer][-1, neuron]) for means in (neurons.directions.harmful, neurons.directions.benign)
            )
            size = float(vectors[layer][neuron].double().square().sum())
            above += size * (float(activations[layer][neuron]) - benign) * (harmful - benign)
            below += size * (harmful - benign) ** 2
    return above / below


def test_prompts_lean_to_their_own_side_at_their_end(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    """On average over the prompts the means themselves come out: 1 for harmful ones, 0 for benign ones."""
    neurons = find(model, harmful, benign, percent=15)
    for prompts, expected in ((harmful, 1.0), (benign, 0.0)):
        ends = [trace_tokens(model, neurons, prompt, top=1).tokens[-1].lean for prompt in prompts]
        assert None not in ends
        assert sum(end for end in ends if end is not None) / len(ends) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_the_strongest_neurons_of_every_token(
    name: str, harmful: list[str], benign: list[str], make_model: Callable[..., ChatModel]
) -> None:
    model = make_model(name)
    neurons = find(model, harmful, benign, percent=15)
    assert neurons.directions is not None
    trace = trace_tokens(model, neurons, PROMPT, top=4, words=3)
    ids = model.tokenizer(model.render(PROMPT), return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad(), kept(model) as activations:
        model.model(input_ids=ids, use_cache=False)
    vectors = [hook_point.write_vectors() for hook_point in model.hook_points]
    assert [one.position for one in trace.tokens] == list(range(-ids.shape[1], 0))
    assert "".join(one.token for one in trace.tokens) == trace.prompt == model.render(PROMPT)
    for token, one in enumerate(trace.tokens):
        strengths = {
            (layer, neuron): abs(float(activations[layer][token, neuron])) * float(vectors[layer][neuron].norm())
            for layer, indices in enumerate(neurons.both)
            for neuron in indices.tolist()
        }
        assert [firing.strength for firing in one.firings] == pytest.approx(
            sorted(strengths.values(), reverse=True)[:4], rel=1e-3
        )
        assert one.lean == pytest.approx(
            lean(neurons, vectors, [layer[token] for layer in activations]), rel=1e-3, abs=1e-3
        )
        for firing in one.firings:
            value = float(activations[firing.hook_point][token, firing.neuron])
            assert firing.layer == firing.hook_point
            assert firing.strength == pytest.approx(strengths[firing.layer, firing.neuron], rel=1e-3)
            assert firing.activation == pytest.approx(value, rel=1e-3, abs=1e-5)
            rejects = firing.neuron in neurons.rejection[firing.layer]
            assert firing.side == ("rejection" if rejects else "conformity")
            means = neurons.directions.harmful if rejects else neurons.directions.benign
            assert firing.mean == pytest.approx(float(means[firing.layer][-1, firing.neuron]))
            assert firing.relative == pytest.approx(value / float(means[firing.layer][-1, firing.neuron]), rel=1e-3)
            # The final norm forgets the length of a write, but not its sign.
            with torch.no_grad():
                norm = {"llama": "model.norm", "gpt2": "transformer.ln_f", "gemma2": "model.norm"}[name]
                write = vectors[firing.layer][firing.neuron] * (1e3 if value > 0 else -1e3)
                logits = model.model.lm_head(model.model.get_submodule(norm)(write))
            best = logits.topk(3).indices.tolist()
            assert firing.words == tuple(model.tokenizer.decode([token]) for token in best)


def test_routed_experts_count_with_their_routing_weight(
    harmful: list[str], benign: list[str], make_model: Callable[..., ChatModel]
) -> None:
    dense = make_model("llama")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=261,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    model = dataclasses.replace(dense, model=network, name="tiny-mixtral")
    neurons = find(model, harmful, benign, percent=30)
    trace = trace_tokens(model, neurons, "Hello", top=1000)
    sizes = [hook_point.write_vectors().norm(dim=1) for hook_point in model.hook_points]
    experts_seen = set()
    for one in trace.tokens:
        per_layer: dict[int, dict[int, float]] = {}
        for firing in one.firings:
            expert = firing.neuron // 24
            routing = firing.strength / (abs(firing.activation) * float(sizes[firing.hook_point][firing.neuron]))
            known = per_layer.setdefault(firing.layer, {}).setdefault(expert, routing)
            assert routing == pytest.approx(known, rel=1e-3), "one weight for a token and an expert"
            experts_seen.add((firing.layer, expert))
        for experts in per_layer.values():
            assert len(experts) <= 2, "a token passes through two experts"
            if len(experts) == 2:
                assert sum(experts.values()) == pytest.approx(1, rel=1e-3)
    assert len(experts_seen) > 4


def test_nothing_of_the_trace_is_left_and_directions_are_not_needed(
    model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    neurons = dataclasses.replace(find(model, harmful, benign, percent=10), directions=None)
    trace = trace_tokens(model, neurons, "Hello")
    assert all(one.lean is None for one in trace.tokens)
    assert all(firing.mean is None and firing.relative is None for one in trace.tokens for firing in one.firings)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_neurons_that_are_none_or_of_another_model_are_errors(
    model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    neurons = find(model, harmful, benign, percent=10)
    empty = (torch.zeros(0, dtype=torch.int64),) * 3
    with pytest.raises(SafetyNeuronsError, match="neuron set is empty"):
        trace_tokens(model, dataclasses.replace(neurons, rejection=empty, conformity=empty), "Hello")
    with pytest.raises(SafetyNeuronsError, match="Find them on this model"):
        trace_tokens(model, dataclasses.replace(neurons, widths=(48, 48, 47)), "Hello")


@pytest.fixture
def folder(model: ChatModel, harmful: list[str], benign: list[str], tmp_path: Path) -> RunFolder:
    neurons = find(model, harmful, benign, percent=10)
    folder = RunFolder(tmp_path / "run")
    neurons.save(folder.neurons, folder.directions)
    files = {path.name: file_sha256(path) for path in (folder.neurons, folder.directions)}
    described = {"name": model.name, "identity": model.identity, "dtype": "float32"}
    stages = {"find": {"fingerprint": "found", "files": files}}
    folder.write_record(run_record(settings={"model": "tiny", "seed": 3}, model=described, stages=stages))
    return folder


def test_command_prints_and_writes_what_the_function_finds(
    model: ChatModel,
    folder: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(workplace_module, "load_model", lambda settings: model)
    monkeypatch.setenv("COLUMNS", "120")
    target = tmp_path / "trace.json"
    arguments = ["tokens", str(folder.path), PROMPT, "--top", "2", "--words", "4", "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["safety-neurons", *arguments])
    with contextlib.suppress(SystemExit):
        cli.main()
    shown = capsys.readouterr().out
    neurons = NeuronSet.load(folder.neurons, folder.directions)
    trace = trace_tokens(model, neurons, PROMPT, top=2, words=4)
    assert json.loads(target.read_text()) == json.loads(json.dumps(dataclasses.asdict(trace)))
    assert trace.tokens[-1].token in shown
    assert str(trace.tokens[-1].firings[0].neuron) in shown
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize(("arguments", "told"), [(["missing"], "--prompt"), (["missing", "Hello"], "holds no run")])
def test_command_tells_what_is_missing(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["safety-neurons", "tokens", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert told in shown
    assert "Traceback" not in shown


def test_a_printed_trace_cannot_steer_the_terminal(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    trace = trace_tokens(model, find(model, harmful, benign, percent=10), "x")
    firing = dataclasses.replace(trace.tokens[0].firings[0], words=("[bold red]I", "\x1b[2J", "\u202e"))
    hostile = dataclasses.replace(trace.tokens[0], token="[/]\x1b[31m", firings=(firing,))
    bare = dataclasses.replace(hostile, token="alone", firings=())
    shown = dataclasses.replace(trace, tokens=(hostile, bare))
    text = str(shown)
    assert "[bold red]I \\x1b[2J \\u202e" in text
    assert "[/]\\x1b[31m" in text
    assert "alone" in text
    console = Console(width=110, force_terminal=True, color_system="truecolor")
    with console.capture() as captured:
        console.print(shown)
    assert "\x1b[2J" not in captured.get()
    assert "\x1b[31m" not in captured.get()
