"""What the find stage says of its options: in the results, and while it runs."""

from pathlib import Path
from typing import Any

import pytest

from builders.listeners import Recorder
from builders.runs import section_of
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.pipeline import run


def test_effect_size_reports_controlled_counts(given: dict[str, Any], tmp_path: Path) -> None:
    notes = Recorder()
    given["find"] = {"score": "effect-size", "percent": 10}
    found = section_of("neurons", run, tmp_path / "run", given, until="find", listener=notes)["significant"]
    assert found["false_discovery_rate"] == 0.05
    assert set(found["per_layer"]) == {"0", "1", "2"}
    assert found["total"] == sum(found["per_layer"].values()) > 0
    counts = NeuronSet.load(tmp_path / "run" / "neurons.safetensors").provenance.significant
    assert counts == tuple(found["per_layer"].values())
    assert any(f"{found['total']} of 144 neurons differ" in line for line in notes.said)


def test_options_reach_the_search_and_the_results(given: dict[str, Any], tmp_path: Path) -> None:
    options = {"score": "magnitude", "percent": 10, "tokens": "response", "selection": "none"}
    neurons = section_of("neurons", run, tmp_path / "run", given | {"find": options}, until="find")
    assert (neurons["tokens"], neurons["selection"], neurons["conformity"]) == ("response", "none", 0)
    assert neurons["significant"] is None


def test_the_second_model_is_loaded_for_the_score_that_needs_it(given: dict[str, Any], tmp_path: Path) -> None:
    find = {"score": "change", "percent": 10}
    with pytest.raises(SafetyNeuronsError, match=r"find\.other_model"):
        run(tmp_path / "without", given | {"find": find}, until="find")
    other = str(Path(given["model"]).with_name("other-model"))
    given["find"] = find | {"other_model": other}
    neurons = section_of("neurons", run, tmp_path / "with", given, until="find")
    assert neurons["total"] > 0
    assert neurons["tokens"] == "response"
