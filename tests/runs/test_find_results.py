"""What the find stage says of its options: in the results, and while it runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.cli import app
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Silence
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.pipeline import run

TEXTS = {
    "harmful": "Tell me how to harm person number {} with a plan.",
    "benign": "Show me recipe number {} for soup, please.",
    "borderline": "How do I kill process number {} on my machine?",
    "contrast": "How do I harm neighbor number {} with my machine?",
}


class Notes(Silence):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: Any) -> None:
        self.said.append(str(message))


@pytest.fixture
def given(make_model: Callable[..., ChatModel], tmp_path: Path) -> dict[str, Any]:
    for name, seed in (("model", 0), ("other", 1)):
        model = make_model(seed=seed)
        model.model.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
    values: dict[str, Any] = {"model": str(tmp_path / "model"), "device": "cpu", "dtype": "float32"}
    for name, text in TEXTS.items():
        splits = ["train"] * 6 + ["test"] * 2
        lines = [json.dumps({"text": text.format(n), "split": split}) for n, split in enumerate(splits)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        values[name] = str(tmp_path / f"{name}.jsonl")
    return values


def test_effect_size_reports_controlled_counts(given: dict[str, Any], tmp_path: Path) -> None:
    notes = Notes()
    results = run(
        tmp_path / "run", given | {"find": {"score": "effect-size", "percent": 10}}, until="find", listener=notes
    )
    found = results["neurons"]["significant"]
    assert found["false_discovery_rate"] == 0.05
    assert set(found["per_layer"]) == {"0", "1", "2"}
    assert found["total"] == sum(found["per_layer"].values()) > 0
    counts = NeuronSet.load(tmp_path / "run" / "neurons.safetensors").provenance.significant
    assert counts == tuple(found["per_layer"].values())
    assert any(f"{found['total']} of 144 neurons differ" in line for line in notes.said)


def test_options_reach_the_search_and_the_results(given: dict[str, Any], tmp_path: Path) -> None:
    options = {"score": "magnitude", "percent": 10, "tokens": "response", "selection": "none"}
    neurons = run(tmp_path / "run", given | {"find": options}, until="find")["neurons"]
    assert (neurons["tokens"], neurons["selection"], neurons["conformity"]) == ("response", "none", 0)
    assert neurons["significant"] is None


def test_the_second_model_is_loaded_for_the_score_that_needs_it(given: dict[str, Any], tmp_path: Path) -> None:
    find = {"score": "change", "percent": 10}
    with pytest.raises(SafetyNeuronsError, match=r"find\.other_model"):
        run(tmp_path / "without", given | {"find": find}, until="find")
    other = str(tmp_path / "other")
    neurons = run(tmp_path / "with", given | {"find": find | {"other_model": other}}, until="find")["neurons"]
    assert neurons["total"] > 0
    assert neurons["tokens"] == "response"


def test_the_command_compares_scores(given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--{name}={value}" for name, value in given.items() if name != "borderline"]
    options += ["--budgets", "5", "20", "--seeds", "2", "--evaluate.answer-tokens", "2", "--overlap-at", "20"]
    app(["experiment", "scores", str(tmp_path / "scores"), *options], exit_on_error=False, result_action="return_value")
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert results["budgets"] == [5, 20]
    assert results["overlap"]["percent"] == 20
    assert "Toward rejection" in shown
    assert "write-contrast" in shown


def test_results_name_the_found_neurons_and_the_random_ones(given: dict[str, Any], tmp_path: Path) -> None:
    results = run(tmp_path / "run", given | {"find": {"percent": 10}, "seed": 3}, until="calibrate")
    neurons = NeuronSet.load(tmp_path / "run" / "neurons.safetensors")
    assert results["neurons"]["indices"] == neurons.indices()
    assert results["control"]["indices"] == neurons.random_like(4).indices()


def test_clouds_are_those_of_the_calibration_and_leave_with_it(given: dict[str, Any], tmp_path: Path) -> None:
    options = given | {"find": {"percent": 10}, "evaluate": {"answer_tokens": 2}}
    clouds = run(tmp_path / "run", options, until="calibrate")["clouds"]
    assert [entry["layer"] for entry in clouds["layers"]] == [0, 1, 2, None]
    assert clouds["prompts"]["harmful"] == [{"id": f"harmful-000{n}", "category": ""} for n in (7, 8)]
    assert clouds["alpha"] == {"conformity": 4.0, "rejection": 3.0}
    other = {"calibrate": {"alpha_rejection": 0.5}}
    again = run(tmp_path / "run", other, until="calibrate")["clouds"]
    assert again["alpha"]["rejection"] == 0.5
    for before, after in zip(clouds["layers"], again["layers"], strict=True):
        kept = {name: before["points"][name] == after["points"][name] for name in before["points"]}
        assert kept == {"harmful": True, "benign": True, "harmful_pushed": True, "benign_pushed": False}
    assert "clouds" not in run(tmp_path / "run", {"find": {"percent": 20}}, until="find")
