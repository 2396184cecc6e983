"""A run that is killed while it tunes goes on with its training, to the same delta."""

from pathlib import Path
from typing import Any

import pytest

from builders.judges import ALWAYS_REFUSED
from builders.listeners import Recorder
from builders.runs import save_model
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.runs.pipeline import run


@pytest.fixture
def given(model: ChatModel, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": save_model(model, tmp_path / "model"),
        "device": "cpu",
        "dtype": "float32",
        "find": {"percent": 5, "prompts": 6},
        "tune": {"refusals": 9, "contrast": 0, "benign": 0, "borderline": 0, "answer_tokens": 3, "batch_size": 1}
        | {"samples": 1, "largest_share": 1.0, "checkpoint_every": 2, "validation_prompts": 1},
        "evaluate": {"judge": ALWAYS_REFUSED.name},
    }


def test_killed_while_it_tunes_a_run_goes_on(given: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "whole", given, until="tune")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", given, until="tune", listener=Recorder("^tuning", 6))
    assert (tmp_path / "killed" / ".checkpoint.safetensors").exists()
    again = Recorder()
    run(tmp_path / "killed", given, until="tune", listener=again)
    steps = again.steps("tuning")
    assert steps[0] == 4
    assert sum(steps) > 6
    assert not (tmp_path / "killed" / ".checkpoint.safetensors").exists()
    one, two = ((tmp_path / name / "delta.safetensors").read_bytes() for name in ("whole", "killed"))
    assert one == two


def test_sharing_out_needs_several_processes_and_is_said_before_any_work(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"tune\.shard .*there is one"):
        run(tmp_path / "run", given | {"tune": {"shard": True}}, until="tune")
    assert not (tmp_path / "run" / "neurons.safetensors").exists()
