"""A run that is killed while it tunes goes on with its training, to the same delta."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Advance, Silence
from safety_neurons.evaluation import judges
from safety_neurons.evaluation.judges import Judgment, RuleJudge
from safety_neurons.models.chat import ChatModel
from safety_neurons.runs.pipeline import run


class Killed(BaseException):
    pass


class Watching(Silence):
    """Counts the steps of training, and dies at one of them."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at, self.done = dies_at, [0]

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        def advance(steps: int) -> None:
            if description.startswith("tuning"):
                self.done.append(steps)
                if sum(self.done) == self.dies_at:
                    raise Killed

        yield advance


@pytest.fixture
def given(model: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(judges, "get", lambda name: RuleJudge(name, "test", lambda *_: Judgment("refused", "always")))
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    return {
        "model": str(tmp_path / "model"),
        "device": "cpu",
        "dtype": "float32",
        "find": {"percent": 5, "prompts": 6},
        "tune": {"refusals": 9, "contrast": 0, "benign": 0, "borderline": 0, "answer_tokens": 3, "batch_size": 1}
        | {"samples": 1, "largest_share": 1.0, "checkpoint_every": 2},
    }


def test_killed_while_it_tunes_a_run_goes_on(given: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "whole", given, until="tune")
    with pytest.raises(Killed):
        run(tmp_path / "killed", given, until="tune", listener=Watching(dies_at=6))
    assert (tmp_path / "killed" / ".checkpoint.safetensors").exists()
    watching = Watching()
    run(tmp_path / "killed", given, until="tune", listener=watching)
    assert watching.done[:2] == [0, 4]
    assert sum(watching.done) > 6
    assert not (tmp_path / "killed" / ".checkpoint.safetensors").exists()
    one, two = ((tmp_path / name / "delta.safetensors").read_bytes() for name in ("whole", "killed"))
    assert one == two


def test_sharing_out_needs_several_processes_and_is_said_before_any_work(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"tune\.shard .*there is one"):
        run(tmp_path / "run", given | {"tune": {"shard": True}}, until="tune")
    assert not (tmp_path / "run" / "neurons.safetensors").exists()
