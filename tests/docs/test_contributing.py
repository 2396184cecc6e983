"""The members that CONTRIBUTING.md shows work from a file outside the package."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.find import find
from safety_neurons.runs.targets import evaluate

BLOCKS = re.findall(r"^```python\n(.*?)^```", (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(), re.M | re.S)
CODE = {re.findall(r"^([A-Z]+) = ", block, re.M)[-1]: block for block in BLOCKS}


def test_each_is_short() -> None:
    assert set(CODE) == {"SCORE", "ATTACK", "DEFENSE", "JUDGE"}
    for block in CODE.values():
        code = [node for node in ast.parse(block).body if not isinstance(node, ast.Import | ast.ImportFrom)]
        assert sum((node.end_lineno or 0) - node.lineno + 1 for node in code) <= 10


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, str]:
    for name, block in CODE.items():
        (tmp_path / f"my_{name.lower()}.py").write_text(block)
    return {name: f"{tmp_path}/my_{name.lower()}.py:{name}" for name in CODE}


def test_the_score_finds_what_magnitude_finds(
    specs: dict[str, str], make_model: Callable[..., ChatModel], harmful: list[str], benign: list[str]
) -> None:
    model = make_model("llama")
    found, expected = (
        find(model, harmful, benign, score=score, percent=10, tokens="last", scope="layer")
        for score in (specs["SCORE"], "magnitude")
    )
    assert found.provenance.score == specs["SCORE"]
    for mine, theirs in zip(found.both, expected.both, strict=True):
        assert torch.equal(mine, theirs)


def test_the_others_run_in_the_grid_and_are_asked_again_when_they_change(
    specs: dict[str, str], make_model: Callable[..., ChatModel], tmp_path: Path
) -> None:
    model = make_model("llama")
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    given: dict[str, Any] = {"evaluate": {"answer_tokens": 3, "prompts": 2}}
    for name in ("harmful", "benign", "borderline", "contrast"):
        rows = [{"prompt": f"{name} {number}", "split": ("train", "test")[number % 2]} for number in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given[name] = str(tmp_path / f"{name}.jsonl")
    short = f"{specs['DEFENSE']}:characters=8"
    given["evaluate"] |= {
        "attacks": ["direct", specs["ATTACK"]],
        "defenses": ["none", specs["DEFENSE"], short],
        "judges": [specs["JUDGE"]],
    }

    def answers() -> list[dict[str, Any]]:
        path = tmp_path / "out" / "responses.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    evaluation = evaluate([str(tmp_path / "model")], given, out=tmp_path / "out")
    results = evaluation.model_dump()
    assert list(results["defenses"]) == given["evaluate"]["defenses"]
    assert list(results["judges"]) == [specs["JUDGE"]]
    cells = {(cell["defense"], cell["attack"]): cell for cell in results["cells"] if cell["prompts"] == "harmful"}
    verdicts = {key: cell["judges"][specs["JUDGE"]]["verdicts"] for key, cell in cells.items()}
    # "harmful 1" has nine characters: the strict defense refuses every request in the judge's words.
    assert verdicts[short, "direct"] == ["refused", "refused"]
    assert verdicts["none", specs["ATTACK"]] == verdicts[specs["DEFENSE"], specs["ATTACK"]] == ["complied"] * 2
    before = answers()
    evaluate([str(tmp_path / "model")], given, out=tmp_path / "out")
    assert answers() == before
    attack = Path(specs["ATTACK"].partition(":")[0])
    attack.write_text(attack.read_text().replace("Please, please", "Please"))
    evaluate([str(tmp_path / "model")], given, out=tmp_path / "out")
    # Both defenses send the reworded attack to the same model, which is asked once.
    assert len(answers()) == len(before) + 2
