"""The attack on a tuned model: neurons found afresh on its weights, and everything as it was afterwards."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from builders.runs import lines_of, section_of
from safety_neurons.experiments import adaptive as adaptive_module
from safety_neurons.experiments.adaptive import adaptive
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.context import RunContext

SMALL = {
    "tune": {"refusals": 4, "benign": 4, "borderline": 0, "contrast": 0, "answer_tokens": 4, "learning_rate": 0.05}
}


@pytest.fixture(scope="module")
def attacked(found_once: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = Path(shutil.copytree(found_once, tmp_path_factory.mktemp("attacked") / "run"))
    return folder, section_of("adaptive", adaptive, folder, SMALL)


def test_both_models_are_calibrated_and_the_tuned_one_with_both_sets(attacked: tuple[Path, dict[str, Any]]) -> None:
    _, section = attacked
    cells = [(row["model"], row["calibrated"]) for row in section["rows"] if row["prompts"] == "harmful"]
    assert cells == [
        ("base", "none"),
        ("base", "found"),
        ("tuned", "none"),
        ("tuned", "found before tuning"),
        ("tuned", "found afresh"),
    ]
    assert {row["n"] for row in section["rows"]} == {3}


def test_the_neurons_are_found_on_the_tuned_weights(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[NeuronSet] = []
    find = adaptive_module.find_neurons_of

    def kept(run: RunContext, title: str) -> NeuronSet:
        seen.append(find(run, title))
        return seen[-1]

    monkeypatch.setattr(adaptive_module, "find_neurons_of", kept)
    adaptive(found, SMALL)
    (afresh,) = seen
    before = NeuronSet.load(found / "neurons.safetensors", found / "directions.safetensors")
    assert afresh.directions is not None
    assert before.directions is not None
    # The same prompts on other weights have other means.
    pairs = zip(afresh.directions.harmful, before.directions.harmful, strict=True)
    assert any(not bool((one == other).all()) for one, other in pairs)


def test_answers_of_the_tuned_model_are_not_taken_for_those_of_the_base_model(
    attacked: tuple[Path, dict[str, Any]],
) -> None:
    folder, section = attacked
    keys = [line["key"] for line in lines_of(folder / "responses.jsonl")]
    assert len(keys) == len(set(keys))
    again = section_of("adaptive", adaptive, folder, SMALL)
    assert again == section
    assert len(lines_of(folder / "responses.jsonl")) == len(keys)
