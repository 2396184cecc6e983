"""A small run whose neurons are found, made once in a session, and a judge that reads no words."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.judges import BY_HASH
from builders.models import silent_model
from builders.runs import save_model, small_run
from safety_neurons.engines.engine import InProcess
from safety_neurons.experiments import intervention as intervention_module
from safety_neurons.runs.pipeline import run


@pytest.fixture(autouse=True, scope="module")
def _some_are_broken() -> Iterator[None]:
    """Whatever a random model writes has a high negative log-likelihood: draw the line among its answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervention_module, "NLL_LIMIT", 6.0)
        yield


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a small run."""
    return small_run(
        tmp_path_factory.mktemp("inputs"),
        find={"percent": 20.0, "positions": 3, "scope": "layer"},
        calibrate={"prompt_positions": 3},
        guard={"false_positive_rate": 0.2, "percent": 20.0},
        tune={"answer_tokens": 3, "samples": 1, "largest_share": 1.0, "learning_rate": 0.02},
        evaluate={"answer_tokens": 4, "judge": BY_HASH.name},
    )


@pytest.fixture
def given(inputs: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(inputs)


@pytest.fixture(scope="session")
def found_once(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose neurons are found, never written to."""
    folder = tmp_path_factory.mktemp("found") / "run"
    run(folder, inputs, until="find")
    return folder


@pytest.fixture
def found(found_once: Path, tmp_path: Path) -> Path:
    """A copy of a run whose neurons are found."""
    return Path(shutil.copytree(found_once, tmp_path / "run"))


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    """A file of eleven prompts that no run knows."""
    path = tmp_path / "foreign.jsonl"
    path.write_text("".join(json.dumps({"text": f"Where is street number {n}?"}) + "\n" for n in range(11)))
    return str(path)


@pytest.fixture
def other_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model computes in another precision from here on, as on another device, without a setting that says it."""
    here = vars(InProcess)["identity"].fget
    monkeypatch.setattr(InProcess, "identity", property(lambda self: f"{here(self)} bfloat16"))


@pytest.fixture
def silent(given: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Settings of a run of a model whose every answer is empty."""
    return given | {"model": save_model(silent_model(), tmp_path / "silent")}
