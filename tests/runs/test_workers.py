"""Two processes answer a grid as one does."""

import json
from pathlib import Path
from typing import Any

from builders.processes import run_together
from safety_neurons.core.files import read_json
from safety_neurons.runs.targets import evaluate

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
