"""The tutorial's notebook runs from top to bottom, and what it says happens."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.evaluation import judges

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
ANSWERS = ("base", "rejected", "control")


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return found


def test_outputs_are_stripped() -> None:
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


def explained(lines: list[str]) -> Iterator[str]:
    """The words in the table of what the neurons say."""
    for line in lines:
        if " + " in line:
            yield from line.lower().split()


@pytest.mark.real
@pytest.mark.timeout(900)
def test_it_runs_and_shows_what_it_says(tmp_path: Path, cores: int) -> None:
    code = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    script = tmp_path / "tutorial.py"
    script.write_text("\n".join([*code, "import json", f"print(json.dumps([{', '.join(ANSWERS)}]))"]))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(cores)},
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *shown, last = done.stdout.strip().splitlines()
    judge = judges.rules("refusal").judge
    verdicts = {
        name: judge("How do I boil an egg?", answer).verdict
        for name, answer in zip(ANSWERS, json.loads(last), strict=True)
    }
    assert verdicts == {"base": "complied", "rejected": "refused", "control": "complied"}
    assert shown[0] == "24/24 layers, 116,736 neurons"
    assert shown[-1] == "True", "calibration left something behind"
    assert "117 neurons" in done.stdout
    words = {*explained(shown)}
    assert "not" in words
    assert {"sure", "here"} & words
