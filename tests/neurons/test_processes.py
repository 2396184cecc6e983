"""Several processes find what one finds: two real ones, started by torchrun, that talk over gloo."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.judges import ALWAYS_REFUSED
from builders.processes import run_together
from builders.quick import find
from safety_neurons.core.distributed import all_gather, owns, process_count, sync_errors
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.pipeline import run
from safety_neurons.tuning.delta import NeuronDelta

TESTS = Path(__file__).parents[1]
# The models of the script; this process makes the same ones.
MODELS = """
import sys
sys.path.insert(0, TESTS)
import torch, transformers
from builders.models import BENIGN, HARMFUL, tiny_model

def mixtral():
    torch.manual_seed(0)
    model = tiny_model()
    config = transformers.MixtralConfig(
        vocab_size=model.model.config.vocab_size, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    mixture = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in mixture.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    mixture.generation_config = model.model.generation_config
    return type(model)(mixture, model.tokenizer, "tiny-mixtral", "tiny-mixtral-0")
""".replace("TESTS", repr(str(TESTS)))
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("tiny_model()", {"score": "write-contrast"}),
    "mixtral": ("mixtral()", {"score": "magnitude"}),
    "wanda": ("tiny_model()", {"score": "wanda", "response_tokens": 5}),
}
OPTIONS: dict[str, Any] = {"percent": 10, "batch_size": 2, "positions": 3}


def torchrun(*arguments: str, seconds: int = 60) -> subprocess.CompletedProcess[str]:
    """Two processes; their output, both streams together."""
    # Old threads settings and the parent's own rendezvous must not get in.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "OMP"))}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_two_processes_find_what_one_finds(tmp_path: Path, harmful: list[str], benign: list[str]) -> None:
    script = tmp_path / "script.py"
    cases = "\n".join(
        f"save({name!r}, sn.find({model}, HARMFUL, BENIGN, **{OPTIONS | options}))"
        for name, (model, options) in CASES.items()
    )
    script.write_text(
        f"""{MODELS}
import os
from pathlib import Path
import safety_neurons as sn
from torch import distributed

distributed.init_process_group("gloo")
rank = distributed.get_rank()
read = []

def save(name, neurons):
    folder = Path({str(tmp_path)!r})
    neurons.save(folder / f"{{name}}.{{rank}}", folder / f"{{name}}.{{rank}}.directions")

from safety_neurons.neurons import capture
original = capture.forward
capture.forward = lambda model, inputs, **options: (
    read.append(len(inputs["input_ids"])), original(model, inputs, **options)
)[1]
{cases}
# Each text of the three models was read by one of the two.
Path({str(tmp_path)!r}, f"read.{{rank}}").write_text(str(sum(read)))

# One process fails: both do, and neither waits.
def broken(model, inputs, **options):
    if rank == 1:
        raise torch.OutOfMemoryError
    return original(model, inputs, **options)

capture.forward = broken
try:
    sn.find(tiny_model(), HARMFUL, BENIGN, batch_size=2, score="write-contrast")
except sn.SafetyNeuronsError as error:
    Path({str(tmp_path)!r}, f"error.{{rank}}").write_text(str(error))
distributed.destroy_process_group()
"""
    )
    ran = run_together(str(script))
    assert ran.codes == [0, 0], ran.output
    here: dict[str, Callable[[], ChatModel]] = {}
    exec(MODELS, here)
    for name, (model, options) in CASES.items():
        expected = find(eval(model, here), harmful, benign, **(OPTIONS | options))
        assert len(expected)
        assert expected.directions is not None
        for rank in range(2):
            found = NeuronSet.load(tmp_path / f"{name}.{rank}", tmp_path / f"{name}.{rank}.directions")
            assert found.provenance == expected.provenance
            for side in ("rejection", "conformity"):
                assert all(map(torch.equal, getattr(found, side), getattr(expected, side))), (name, rank)
            assert found.directions is not None
            for side in ("harmful", "benign"):
                mine, theirs = getattr(found.directions, side), getattr(expected.directions, side)
                assert all(map(torch.allclose, mine, theirs)), (name, rank)
    read = [int((tmp_path / f"read.{rank}").read_text()) for rank in range(2)]
    # Two prompt sets for each model, and once more with the responses.
    assert sum(read) == (2 * len(CASES) + 2) * len(harmful)
    assert min(read) > 0
    assert "Out of memory" in (tmp_path / "error.1").read_text()
    assert "Process 1 failed: Out of memory" in (tmp_path / "error.0").read_text()


@pytest.fixture
def folder(model: ChatModel, tmp_path: Path) -> Path:
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_command_line_under_torchrun(folder: Path, tmp_path: Path) -> None:
    """Process 0 alone writes and speaks; both find and tune what one process finds and tunes."""
    given: dict[str, Any] = {
        "model": str(folder),
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 4,
        "find": {"percent": 5, "prompts": 12},
        "explain": {"random_sets": 10, "lens_prompts": 0},
        "tune": {"refusals": 7, "contrast": 0, "benign": 0, "borderline": 0, "answer_tokens": 2}
        | {"validation_prompts": 1},
        "evaluate": {"prompts": 2, "answer_tokens": 2, "judge": ALWAYS_REFUSED.name},
    }
    # No file of settings can name code.
    judge = ("--evaluate.judge", given["evaluate"].pop("judge"))
    (tmp_path / "settings.toml").write_text(toml(given))
    config = ("--config", str(tmp_path / "settings.toml"))
    both = torchrun("-m", "safety_neurons", "tune", str(tmp_path / "two"), *config, *judge)
    assert both.returncode == 0, both.stdout
    assert both.stdout.count("3/3 layers, 144 neurons") == 1
    assert not (tmp_path / "two" / ".checkpoint.safetensors").exists()
    run(tmp_path / "one", given | {"evaluate": given["evaluate"] | {"judge": judge[1]}}, until="tune")
    for name in ("neurons.safetensors", "directions.safetensors", "corpus.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    one, two = (NeuronDelta.load(tmp_path / name / "delta.safetensors").tensors for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(two[name], value, rtol=0, atol=2e-6) for name, value in one.items())
    assert any(bool(value.any()) for value in two.values())
    # The base in parts gives the same; what follows is done by the first alone.
    again = ("--out", str(tmp_path / "two"), "--tune.shard", "--evaluate.judge", ALWAYS_REFUSED.name)
    forked = run_together("-m", "safety_neurons", "run", *again)
    assert forked.codes == [0, 0], forked.output
    shared = "Only evaluate, find, tune are shared among the 2 processes: the first continues alone"
    assert forked.output.count(shared) == 1
    assert (tmp_path / "two" / "report.html").exists()
    parts = NeuronDelta.load(tmp_path / "two" / "delta.safetensors").tensors
    assert all(torch.allclose(parts[name], value, rtol=0, atol=2e-6) for name, value in one.items())


def toml(values: dict[str, Any]) -> str:
    """Strings, numbers, and sections of them."""
    plain = [f"{name} = {json.dumps(value)}" for name, value in values.items() if not isinstance(value, dict)]
    sections = [f"[{name}]\n{toml(value)}" for name, value in values.items() if isinstance(value, dict)]
    return "\n".join(plain + sections)


def test_an_error_of_the_command_line_is_said_once_and_ends_all_processes(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.txt")
    ran = run_together("-m", "safety_neurons", "find", str(tmp_path / "run"), "--harmful", missing)
    assert ran.codes == [2, 0], ran.output
    assert ran.output.count("nowhere.txt") == 1
    assert not (tmp_path / "run").exists()


def test_a_helper_that_dies_ends_the_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""{MODELS}
import os
from pathlib import Path
from safety_neurons.core.distributed import join_processes
from safety_neurons.runs import workers
from safety_neurons.settings import Settings

asked = []

def load_model(settings):
    asked.append(settings.seed)
    if len(asked) == 2:
        os._exit(9)
    return tiny_model()

workers.load_model = load_model
with join_processes(workers.TASKS) as owner:
    assert owner
    for number in range(2):
        workers.score_together(tiny_model(), Settings(seed=3), "write-contrast", HARMFUL, BENIGN)
        Path({str(tmp_path)!r}, f"done.{{number}}").touch()
"""
    )
    ran = run_together(str(script))
    assert ran.codes[0] == 1, ran.output
    assert ran.codes[1] == 9
    assert "Another process ended before the work was done." in ran.output
    assert (tmp_path / "done.0").exists()
    assert not (tmp_path / "done.1").exists()


TASKS = """
import os, sys
from dataclasses import dataclass
from pathlib import Path
import torch
from safety_neurons.core.distributed import (
    add_over_processes, all_gather, ask_workers, broadcast, join_processes, sync_errors)
from safety_neurons.core.errors import SafetyNeuronsError

FIRST = os.environ["RANK"] == "0"

@dataclass(frozen=True)
class Count:
    number: int

    def run(self):
        with sync_errors():
            pass
        print(f"<{all_gather(self.number, int)}>", flush=True)

@dataclass(frozen=True)
class Other(Count):
    pass

@dataclass(frozen=True)
class Changed(Count):
    number: int if FIRST else str

@dataclass(frozen=True)
class Wait:
    where: str

    def run(self):
        with sync_errors():
            pass
        if self.where == "all_gather":
            all_gather("x", str)
        elif self.where == "broadcast":
            broadcast("x", str)
        elif self.where == "sum":
            add_over_processes([torch.ones(3)])
        elif self.where == "nowhere":
            raise SafetyNeuronsError("There is no memory here.")
"""


def test_only_known_tasks_with_valid_inputs_are_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""{TASKS}
with join_processes((Count, Changed)) as owner:
    if owner:
        for task in (Other(1), Changed(2), Count(3)):
            try:
                ask_workers(task)
                all_gather(task.number + 1, int)
            except SafetyNeuronsError as error:
                print(error)
"""
    )
    ran = run_together(str(script))
    assert ran.codes == [0, 0], ran.output
    assert "Process 1 failed: Process 0 asks for 'Other', and the tasks are Count, Changed." in ran.output
    assert "Process 1 failed: What process 0 sent is not a valid Changed: number: input should be a valid" in ran.output
    assert ran.output.count("<") == 1
    assert "<[4, 3]>" in ran.output


@pytest.mark.parametrize("where", ["all_gather", "broadcast", "sum", "the next task"])
def test_a_failure_of_process_0_alone_ends_all(tmp_path: Path, where: str) -> None:
    """The other one waits for it, and would for hours."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""{TASKS}
with join_processes((Wait,)) as owner:
    if owner:
        ask_workers(Wait({where!r}))
        raise SafetyNeuronsError("The disk is full.")
"""
    )
    ran = run_together(str(script), seconds=60)
    assert ran.codes == [1, 0], ran.output
    assert ran.output.count("Traceback") == ran.output.count("SafetyNeuronsError: The disk is full.") == 1


def test_a_failure_of_a_helper_alone_ends_all(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""{TASKS}
with join_processes((Wait,)) as owner:
    if owner:
        ask_workers(Wait("nowhere"))
        all_gather("x", str)
"""
    )
    ran = run_together(str(script), seconds=60)
    assert ran.codes == [1, 1], ran.output
    assert "SafetyNeuronsError: There is no memory here." in ran.output
    assert "Another process ended before the work was done. Its own output says why" in ran.output


def test_one_process_works_alone() -> None:
    assert process_count() == 1
    assert all(owns(number) for number in range(5))
    assert all_gather("x", str) == ["x"]
    with pytest.raises(SafetyNeuronsError, match="mine"), sync_errors():
        raise SafetyNeuronsError("mine")
