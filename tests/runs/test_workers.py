"""Two processes answer a grid as one does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from builders.judges import BY_PROMPT
from builders.processes import run_together
from safety_neurons.core.files import read_json
from safety_neurons.core.messages import pack, unpack
from safety_neurons.evaluation.contracts import RunArtifacts
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.folder import RunFolder
from safety_neurons.runs.targets import evaluate
from safety_neurons.runs.workers import TuneTask
from safety_neurons.settings import Settings
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta

ATTACKS = ("direct", "prefix-injection")
DEFENSES = ("none", "smoothllm:copies=3", "safetuning")

SCRIPT = """
from torch import distributed
from safety_neurons.cli import main
from safety_neurons.engines.engine import InProcess

answer = InProcess.answer

def counting(self, conversations, **options):
    rank = distributed.get_rank()
    for found in answer(self, conversations, **options):
        print(f"<process {rank}>", flush=True)
        yield found

InProcess.answer = counting
main()
"""


def test_two_processes_answer_as_one_does(given: dict[str, Any], tmp_path: Path) -> None:
    model = given.pop("model")
    # At least two batches for each cell.
    given |= {"batch_size": 2, "evaluate": {"answer_tokens": 5}}
    flat = {name: value for name, value in given.items() if not isinstance(value, dict)}
    settings = "".join(f"{name} = {json.dumps(value)}\n" for name, value in flat.items())
    (tmp_path / "settings.toml").write_text(f"{settings}[evaluate]\nanswer_tokens = 5\n")
    arguments = [model, "--config", str(tmp_path / "settings.toml"), "--out", str(tmp_path / "two")]
    arguments += ["--evaluate.attacks", *ATTACKS, "--evaluate.defenses", *DEFENSES]
    # Each process says how many answers it computed itself.
    (tmp_path / "script.py").write_text(SCRIPT)
    ran = run_together(str(tmp_path / "script.py"), "evaluate", *arguments)
    assert ran.codes == [0, 0], ran.output
    counts = [ran.output.count(f"<process {rank}>") for rank in range(2)]
    assert min(counts) > sum(counts) / 4
    assert sum(counts) == len((tmp_path / "two" / "responses.jsonl").read_text().splitlines())
    evaluate(model, given, attacks=ATTACKS, defenses=DEFENSES, out=tmp_path / "one")
    alone = read_json(tmp_path / "one" / "evaluation.json")
    together = read_json(tmp_path / "two" / "evaluation.json")
    assert together["cells"] == alone["cells"]
    assert together["summary"] == alone["summary"]
    for name in ("responses.jsonl", "verdicts.jsonl"):
        kept = [sorted((tmp_path / folder / name).read_text().splitlines()) for folder in ("one", "two")]
        assert kept[0] == kept[1]
        assert len(kept[0]) == len(set(kept[0]))


def test_neurons_guard_and_delta_of_a_run_reach_all_processes(finished: Path, tmp_path: Path) -> None:
    defenses = ("none", "guard", "safetuning")
    command = ["evaluate", str(finished), "--out", str(tmp_path / "two"), "--evaluate.defenses", *defenses]
    command += ["--evaluate.attacks", "direct", "--evaluate.judge", BY_PROMPT.name, "--batch-size", "2"]
    (tmp_path / "script.py").write_text(SCRIPT)
    ran = run_together(str(tmp_path / "script.py"), *command)
    assert ran.codes == [0, 0], ran.output
    assert min(ran.output.count(f"<process {rank}>") for rank in range(2)) > 0
    evaluate(
        finished, {"batch_size": 2}, out=tmp_path / "one", defenses=defenses, attacks=("direct",), judge=BY_PROMPT.name
    )
    alone, together = (read_json(tmp_path / name / "evaluation.json") for name in ("one", "two"))
    assert together["cells"] == alone["cells"]
    assert {cell["defense"] for cell in alone["cells"]} == set(defenses)
    assert not any(cell.get("reason") for cell in alone["cells"])


def test_inputs_of_a_task_arrive_whole(finished: Path) -> None:
    folder = RunFolder(finished)
    neurons = NeuronSet.load(folder.neurons, folder.directions)
    delta, corpus = NeuronDelta.load(folder.delta), Corpus.load(folder.corpus)
    settings = Settings(find={"percent": 20}, seed=3)
    found = unpack(pack(TuneTask(settings, neurons, corpus), TuneTask), TuneTask, sender=0)
    assert (found.settings, found.corpus) == (settings, corpus)
    assert found.neurons.provenance == neurons.provenance
    for name in ("rejection", "conformity"):
        assert all(map(torch.equal, getattr(found.neurons, name), getattr(neurons, name)))
    for name in ("harmful", "benign"):
        assert all(map(torch.equal, getattr(found.neurons.directions, name), getattr(neurons.directions, name)))
    artifacts = RunArtifacts(neurons, None, delta, corpus)
    received = unpack(pack(artifacts, RunArtifacts), RunArtifacts, sender=0)
    assert received.delta.digest == delta.digest
    assert replace(received, neurons=None, delta=None) == replace(artifacts, neurons=None, delta=None)
