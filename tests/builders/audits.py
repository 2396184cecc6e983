"""Small audits: a base, fine-tunes of it that lie beside it, and judges of which one depends on the model's answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from builders.models import tiny_model
from builders.runs import Splits, save_model, small_run
from safety_neurons.models.chat import ChatModel

SPLITS = Splits(2, 2, 12)


def damaged(factor: float = 1.5) -> ChatModel:
    """The tiny model with other weights in its last layer: it answers otherwise."""
    model = tiny_model()
    with torch.no_grad():
        model.model.model.layers[-1].mlp.down_proj.weight.mul_(factor)
    return model


def audit_inputs(folder: Path, change: Callable[[], ChatModel] = damaged, **sections: Any) -> dict[str, Any]:
    """Settings of a small audit; `model` is the base and `tuned` lies beside it."""
    given = small_run(folder, SPLITS, evaluate={"answer_tokens": 4, "attacks": ["direct", "prefill"]} | sections)
    save_model(change(), folder / "tuned")
    return given


def write_task(path: Path, rows: int = 4, **columns: str) -> Path:
    """A file of sums with GSM8K's marks; `columns` give the two columns other names."""
    names = {"prompt": "prompt", "response": "response"} | columns
    lines = [
        {names["prompt"]: f"What is {n} and {n}?", names["response"]: f"Together {2 * n}.\n#### {2 * n}"}
        for n in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
