"""A model of which one layer cannot be read: an error, or, where that is allowed, said in every output."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from builders.judges import ALWAYS_REFUSED
from builders.listeners import Recorder
from builders.quick import find
from builders.runs import save_model
from safety_neurons.cli.console import console, print_tables
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import load
from safety_neurons.models.neurons.trace import decoder_layers
from safety_neurons.report import RunResults, tables_of
from safety_neurons.runs import context as context_module
from safety_neurons.runs.pipeline import run, stage_fingerprints
from safety_neurons.settings import Settings

PARTIAL = "2 of 3 layers"


@pytest.fixture
def unreadable(make_model: Callable[..., ChatModel]) -> ChatModel:
    """Its middle layer has a matrix of which nobody knows what it is for."""
    model = make_model()
    mlp = decoder_layers(model.model)[1].mlp
    assert isinstance(mlp, nn.Module)
    mlp.register_parameter("extra", nn.Parameter(torch.zeros(4, 32)))
    return model


def test_options_of_load_reach_the_model(unreadable: ChatModel) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"Layer 1 .*mlp\.extra.*write_matrices.*allow_partial"):
        load(unreadable.model, unreadable.tokenizer).coverage  # noqa: B018
    partial = load(unreadable.model, unreadable.tokenizer, allow_partial=True)
    assert (partial.coverage.layers, partial.coverage.layers_total, len(partial.coverage.unread)) == (2, 3, 1)
    named = load(unreadable.model, unreadable.tokenizer, write_matrices="model.layers.*.mlp.down_proj")
    assert (named.coverage.layers, named.coverage.unread) == (3, ())


def test_the_neurons_say_that_they_are_of_some_layers_only(
    unreadable: ChatModel, model: ChatModel, harmful: list[str], benign: list[str]
) -> None:
    assert "PARTIAL" not in str(find(model, harmful, benign))
    partial = load(unreadable.model, unreadable.tokenizer, allow_partial=True)
    assert "2/3 layers" in str(find(partial, harmful, benign))
    assert "PARTIAL: 1 layers" in str(find(partial, harmful, benign))


@pytest.mark.parametrize("allow_partial", [True, False])
def test_every_output_of_a_run_says_so(
    allow_partial: bool,
    unreadable: ChatModel,
    model: ChatModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run on the partly read model, and, as the control, one on a whole model."""
    chosen = unreadable if allow_partial else model

    def load_here(_name: str, **options: Any) -> ChatModel:
        return load(chosen.model, chosen.tokenizer, allow_partial=options["allow_partial"])

    monkeypatch.setattr(context_module, "load", load_here)
    notes = Recorder()
    given = {
        "model": save_model(model, tmp_path / "model"),
        "allow_partial": allow_partial,
        "find": {"percent": 5, "prompts": 8},
        "tune": {"refusals": 4, "benign": 0, "borderline": 0, "contrast": 0, "answer_tokens": 2, "select": False},
        "evaluate": {"attacks": ["direct"], "prompts": 4, "answer_tokens": 2, "judge": ALWAYS_REFUSED.name},
    }
    run(tmp_path / "run", given, listener=notes)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    page = (tmp_path / "run" / "report.html").read_text()
    with console.capture() as captured:
        print_tables(*tables_of(RunResults.of(results), "calibration", "before_after"))
    coverage = results["run"]["coverage"]
    assert len(coverage["unread"]) == allow_partial
    assert ("PARTIAL" in notes.said[0]) == allow_partial
    assert any("mlp.extra" in said for said in notes.said) == allow_partial
    # Where the neurons are, and in the captions of the tables: of the causal test, the clouds and the evaluation.
    captions = [one for one in re.findall("<caption>(.*?)</caption>", page, re.DOTALL) if f"only {PARTIAL} were" in one]
    assert page.count(f"{PARTIAL} were") > len(captions) or not allow_partial
    assert (len(captions) >= 3) if allow_partial else (f"{PARTIAL} were" not in page)
    assert ("mlp.extra" in page) == allow_partial
    assert (PARTIAL in captured.get()) == allow_partial


@pytest.mark.parametrize(
    "changed", [{"allow_partial": True}, {"write_matrices": "*.down_proj"}, {"quantize": "4bit"}], ids=str
)
def test_how_neurons_are_found_is_a_part_of_every_stage(changed: dict[str, Any]) -> None:
    prompts: Any = {name: type("Set", (), {"sha256": name}) for name in ("harmful", "benign", "borderline", "contrast")}
    before = stage_fingerprints(Settings(), "weights", prompts)
    after = stage_fingerprints(Settings(**changed), "weights", prompts)
    assert all(before[stage] != after[stage] for stage in before)
