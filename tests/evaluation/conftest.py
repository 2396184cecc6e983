"""Settings of a tiny model in a folder, with prompt files of which some rows are for testing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.models.chat import ChatModel


@pytest.fixture
def given(make_model: Callable[..., ChatModel], tmp_path: Path) -> dict[str, Any]:
    """The settings; the model is in the folder `model`."""
    model = make_model("llama")
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    values: dict[str, Any] = {"batch_size": 4}
    for name in ("harmful", "benign", "borderline", "contrast"):
        rows = [
            {"prompt": f"{name} request {number}", "split": ("train", "validation", "test")[number % 3]}
            for number in range(30)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        values[name] = str(tmp_path / f"{name}.jsonl")
    return values | {"evaluate": {"answer_tokens": 5}}
