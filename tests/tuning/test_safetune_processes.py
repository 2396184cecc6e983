"""Two processes train what one trains: real ones that talk over gloo."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from builders.processes import run_together
from builders.quick import tune
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning.corpus import Corpus, Pair

TESTS = Path(__file__).parents[1]
START = """
import sys
sys.path.insert(0, TESTS)
import json, os
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import distributed
import safety_neurons as sn
from builders.models import drawn_neurons, tiny_model

distributed.init_process_group("gloo")
rank, out = distributed.get_rank(), Path(OUT)
corpus = sn.Corpus.load(out / "corpus.jsonl")

def keep(name, delta):
    save_file(delta.tensors, out / f"{name}.{rank}.safetensors")
    curve = [[step.step, step.loss] for step in delta.steps]
    (out / f"{name}.{rank}.json").write_text(json.dumps({"curve": curve, "first": delta.after(1).digest}))
"""
OPTIONS: dict[str, Any] = {"batch_size": 5, "epochs": 2, "learning_rate": 0.01, "kl": 0.3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases in one pair of processes: they take longer to start than to train."""
    folder = tmp_path_factory.mktemp("two")
    tuning_corpus().save(folder / "corpus.jsonl")
    script = folder / "script.py"
    start = START.replace("TESTS", repr(str(TESTS))).replace("OUT", repr(str(folder)))
    script.write_text(f"{start}OPTIONS = {OPTIONS!r}\n{CASES}")
    ran = run_together(str(script))
    assert ran.codes == [0, 0], ran.output
    return folder


def tuning_corpus() -> Corpus:
    """Seven pairs: with five in a batch, two processes have three and two, and then one and one."""
    kinds = ("refusal", "benign", "borderline")
    return Corpus(
        tuple(Pair(kinds[n % 3], f"p{n}", "Say " + "it " * n, "", "No." * (1 + n % 3)) for n in range(7))  # type: ignore[arg-type]
    )


CASES = """
def bytes_of(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}

def held(model):
    # Of each weight what this process has; what is shared by two modules counts once.
    return sum(value.to_local().numel() if hasattr(value, "to_local") else value.numel()
               for value in model.model.parameters())

def tune(name, architecture, dtype=torch.float32, **options):
    model = tiny_model(architecture)
    model.model.to(dtype)
    neurons, before = drawn_neurons(model), bytes_of(model)
    parts, kinds = [], {part: type(part) for part in model.model.modules()}
    attributes = {part: set(part.__dict__) for part in model.model.modules()}

    delta = sn.tune(model, neurons, corpus, **(OPTIONS | options), advance=lambda steps: parts.append(held(model)))
    keep(name, delta)
    after = bytes_of(model)
    facts = {
        "same bytes": before.keys() == after.keys() and all(
            value.dtype == before[key].dtype and torch.equal(value, before[key]) for key, value in after.items()),
        "same kinds": all(type(part) is kind for part, kind in kinds.items()),
        "same attributes": all(set(part.__dict__) == names for part, names in attributes.items()),
        "hooks": sum(len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._state_dict_pre_hooks)
                     for part in model.model.modules()),
        "shares": max(parts) / sum(value.numel() for value in model.model.parameters()),
        "still chats": bool(model.chat("Hello", max_new_tokens=2) or True),
    }
    (out / f"{name}.{rank}.facts.json").write_text(json.dumps(facts))

tune("llama", "llama")
tune("parts", "llama", accumulate=2)
tune("shard", "llama", shard=True)
tune("shard-tied", "gpt2", shard=True, gradient_checkpointing=True)
tune("experts", "qwen2_moe")
tune("shard-experts", "gpt_oss", shard=True, gradient_checkpointing=True)
tune("shard-bfloat16", "gemma3", torch.bfloat16, shard=True, accumulate=2)

# Both are killed, and go on together.
class Killed(BaseException):
    pass

done = []

def die(steps):
    done.append(steps)
    if len(done) == 4:
        raise Killed

options = OPTIONS | {"checkpoint": out / "checkpoint.safetensors", "checkpoint_every": 1}
model = tiny_model()
try:
    sn.tune(model, drawn_neurons(model), corpus, **options, advance=die)
except Killed:
    pass
(out / f"left.{rank}").write_text(str((out / "checkpoint.safetensors").exists()))
distributed.barrier()
keep("resumed", sn.tune(model, drawn_neurons(model), corpus, **options))

def error_of(**options):
    given = options.pop("corpus", corpus)
    try:
        sn.tune(model, drawn_neurons(model), given, **(OPTIONS | options))
    except sn.SafetyNeuronsError as error:
        return str(error)

(out / f"error.{rank}").write_text(error_of(corpus=sn.Corpus(corpus.pairs[rank:])))
distributed.destroy_process_group()
"""


def facts(folder: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.{rank}.facts.json").read_text())
    return found


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("llama", "llama"),
        ("parts", "llama"),
        ("shard-tied", "gpt2"),
        ("experts", "qwen2_moe"),
        ("shard-experts", "gpt_oss"),
        ("resumed", "llama"),
    ],
)
def test_two_processes_train_what_one_trains(
    trained: Path,
    make_model: Callable[..., ChatModel],
    neuron_set: Callable[..., NeuronSet],
    name: str,
    architecture: str,
) -> None:
    """In float32 to the rounding of sums: weights that moved by some hundredths differ by less than a millionth."""
    model = make_model(architecture)
    expected = tune(model, neuron_set(model), tuning_corpus(), **OPTIONS)
    assert max(float(value.abs().max()) for value in expected.tensors.values()) > 0.01
    for rank in range(2):
        found = load_file(trained / f"{name}.{rank}.safetensors")
        assert found.keys() == expected.tensors.keys()
        for key, value in expected.tensors.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=2e-6, msg=f"{name} {key}")
        curve = json.loads((trained / f"{name}.{rank}.json").read_text())["curve"]
        assert [step for step, _ in curve] == [step.step for step in expected.steps]
        assert [loss for _, loss in curve] == pytest.approx([step.loss for step in expected.steps], rel=2e-6)


@pytest.mark.parametrize(
    "name",
    ["llama", "parts", "shard", "shard-tied", "experts", "shard-experts", "shard-bfloat16", "resumed"],
)
def test_both_processes_have_the_same_delta_to_the_bit(trained: Path, name: str) -> None:
    assert (trained / f"{name}.0.safetensors").read_bytes() == (trained / f"{name}.1.safetensors").read_bytes()
    assert (trained / f"{name}.0.json").read_bytes() == (trained / f"{name}.1.json").read_bytes()


@pytest.mark.parametrize("name", ["shard", "shard-tied", "shard-experts", "shard-bfloat16"])
def test_the_base_is_sharded_and_whole_again(trained: Path, name: str) -> None:
    """Odd numbers of rows are padded, so a part may be a little more than a half."""
    for rank in range(2):
        found = facts(trained, name, rank)
        assert found["shares"] < 0.52
        assert found["same bytes"]
        assert found["same kinds"]
        assert found["same attributes"]
        assert found["hooks"] == 0
    assert facts(trained, "llama", 0)["shares"] == 1


def test_base_in_parts_gives_what_the_whole_one_gives(trained: Path) -> None:
    for rank in range(2):
        whole, parts = (load_file(trained / f"{name}.{rank}.safetensors") for name in ("llama", "shard"))
        for key, value in whole.items():
            torch.testing.assert_close(parts[key], value, rtol=0, atol=2e-6, msg=key)


def test_two_processes_resume_and_tidy_up(trained: Path) -> None:
    assert [(trained / f"left.{rank}").read_text() for rank in range(2)] == ["True", "True"]
    assert (trained / "resumed.0.safetensors").read_bytes() == (trained / "llama.0.safetensors").read_bytes()
    assert not (trained / "checkpoint.safetensors").exists()


def test_what_fails_in_one_fails_in_both(trained: Path) -> None:
    for rank in range(2):
        said = (trained / f"error.{rank}").read_text()
        assert "different models, neurons, corpora or training options" in said
