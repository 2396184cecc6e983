"""Small audits: a base, fine-tunes of it that lie beside it, and task files."""

import json
from pathlib import Path
from typing import Any

import torch

from builders.models import tiny_model
from builders.runs import Splits, save_model, small_run
from safety_neurons.models.chat import ChatModel

SPLITS = Splits(2, 2, 12)


def moved() -> ChatModel:
    """The tiny model with larger weights in its last layer: it answers otherwise."""
    model = tiny_model()
    body: Any = model.model
    with torch.no_grad():
        body.model.layers[-1].mlp.down_proj.weight.mul_(1.5)
    return model


def stuck() -> ChatModel:
    """A tiny model that answers everything with AAAA."""
    model = tiny_model()
    body: Any = model.model
    with torch.no_grad():
        for layer in body.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
        body.model.embed_tokens.weight.fill_(1.0)
        body.lm_head.weight.zero_()
        body.lm_head.weight[model.tokenizer.convert_tokens_to_ids("A")] = 1.0
    return model


def audit_inputs(folder: Path, **evaluate: Any) -> dict[str, Any]:
    """Settings of a small audit, of the model `base`, beside which lie its fine-tunes `moved` and `stuck`."""
    given = small_run(folder, SPLITS, evaluate={"answer_tokens": 4, "attacks": ["direct", "prefill"]} | evaluate)
    (folder / "model").rename(folder / "base")
    del given["model"]
    for name, model in (("moved", moved()), ("stuck", stuck())):
        save_model(model, folder / name)
    return given


def write_task(path: Path, rows: int = 4, prompt: str = "prompt", response: str = "response") -> Path:
    """A file of sums with GSM8K's marks."""
    lines = [{prompt: f"What is {n} and {n}?", response: f"Together {2 * n}.\n#### {2 * n}"} for n in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
