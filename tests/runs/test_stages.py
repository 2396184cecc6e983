"""What the stages leave in the results: rows, examples, neurons, and the two clouds."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.judges import by_prompt
from builders.runs import TEXTS, prompts_of, results_of, section_of
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import Completion
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.pipeline import run
from safety_neurons.tuning.delta import NeuronDelta

TEST_NUMBERS = range(10, 14)
ROW_KEYS = {
    "stage",
    "subject",
    "condition",
    "prompts",
    "attack",
    "defense",
    "judge",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "unscored",
}


def test_rows_have_their_columns_and_the_rates_of_the_verdicts(whole: Path) -> None:
    rows = results_of(whole)["rows"]
    assert {row["stage"] for row in rows} == {"calibrate"}
    for row in rows:
        assert set(row) == ROW_KEYS
        verdicts = [by_prompt(text) for text in prompts_of(row["prompts"], TEST_NUMBERS)]
        assert row["metric"] == "refused"
        judged = [verdict for verdict in verdicts if verdict != "unscored"]
        assert row["n"] == len(judged)
        assert row["unscored"] == verdicts.count("unscored")
        assert row["value"] == pytest.approx(judged.count("refused") / len(judged))
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1


def marked(
    _model: ChatModel, prompts: list[str], *, done: frozenset[int], **_: Any
) -> Iterator[tuple[int, Completion]]:
    """Answers that can be recognized wherever they turn up."""
    for index, prompt in enumerate(prompts):
        if index not in done:
            found = re.search(r"(person|recipe|process|neighbor) number (\d+)", prompt)
            assert found is not None
            yield index, Completion(f"MARK-{found[1]}-{found[2]}-MARK", cut_off=False)


def test_compliant_answers_to_harmful_prompts_stay_out_of_sight(
    given: dict[str, Any], tmp_path: Path, replace_generate: Callable[..., None]
) -> None:
    replace_generate(marked)
    run(tmp_path / "run", given)
    shown = (tmp_path / "run" / "results.json").read_text() + (tmp_path / "run" / "report.html").read_text()
    hidden = [n for n in range(14) if by_prompt(TEXTS["harmful"].format(n)) != "refused"]
    assert all(f"MARK-person-{number}-MARK" not in shown for number in hidden)
    assert "MARK-person-12-MARK" in shown
    assert "MARK-recipe-10-MARK" in shown
    for example in results_of(tmp_path / "run")["examples"]:
        redacted = example["prompts"] == "harmful" and example["verdict"] != "refused"
        assert (example["response"] is None) is redacted
    corpus = (tmp_path / "run" / "corpus.jsonl").read_text()
    assert all(f"MARK-person-{number}-MARK" not in corpus for number in hidden)


def test_compliant_answers_are_shown_on_request(
    given: dict[str, Any], tmp_path: Path, replace_generate: Callable[..., None]
) -> None:
    replace_generate(marked)
    run(tmp_path / "run", given)
    run(tmp_path / "run", {"show_responses": True})
    for name in ("results.json", "report.html"):
        assert "MARK-person-10-MARK" in (tmp_path / "run" / name).read_text(), name
    assert all(example["response"] for example in results_of(tmp_path / "run")["examples"])
    # And away again.
    run(tmp_path / "run", {"show_responses": False})
    for name in ("results.json", "report.html"):
        assert "MARK-person-10-MARK" not in (tmp_path / "run" / name).read_text(), name


def test_results_name_the_found_neurons_and_the_random_ones(given: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "run", given | {"find": {"percent": 10}, "seed": 3}, until="calibrate")
    results = results_of(tmp_path / "run")
    neurons = NeuronSet.load(tmp_path / "run" / "neurons.safetensors")
    assert results["neurons"]["indices"] == neurons.indices()
    assert results["control"]["indices"] == neurons.random_like(4).indices()


def test_other_neurons_can_be_tuned_than_are_calibrated(given: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "run", given | {"tune": given["tune"] | {"percent": 50}}, until="tune")
    found = NeuronSet.load(tmp_path / "run" / "neurons.safetensors")
    tuned = NeuronDelta.load(tmp_path / "run" / "delta.safetensors").neurons
    # Of the same score, so the found ones are the best of them.
    assert (found.provenance.percent, tuned.provenance.percent) == (20, 50)
    assert len(found) < len(tuned)
    for one, other in zip(found.both, tuned.both, strict=True):
        assert set(one.tolist()) < set(other.tolist())


def test_clouds_are_those_of_the_calibration_and_leave_with_it(given: dict[str, Any], tmp_path: Path) -> None:
    options = given | {"find": {"percent": 10}}
    clouds = section_of("clouds", run, tmp_path / "run", options, until="calibrate")
    assert [entry["layer"] for entry in clouds["layers"]] == [0, 1, 2, None]
    assert clouds["prompts"]["harmful"] == [{"id": f"harmful-00{n}", "category": ""} for n in (11, 12, 13, 14)]
    assert clouds["alpha"] == {"conformity": 4.0, "rejection": 3.0}
    other = {"calibrate": {"alpha_rejection": 0.5}}
    again = section_of("clouds", run, tmp_path / "run", other, until="calibrate")
    assert again["alpha"]["rejection"] == 0.5
    for before, after in zip(clouds["layers"], again["layers"], strict=True):
        kept = {name: before["points"][name] == after["points"][name] for name in before["points"]}
        assert kept == {"harmful": True, "benign": True, "harmful_calibrated": True, "benign_calibrated": False}
    assert run(tmp_path / "run", {"find": {"percent": 20}}, until="find").clouds is None
    assert "clouds" not in results_of(tmp_path / "run")
