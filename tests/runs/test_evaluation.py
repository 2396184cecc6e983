"""The stage evaluate: the grid over a run's own test prompts, asked and judged once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from builders.judges import BY_PROMPT, by_prompt
from builders.listeners import Recorder
from builders.runs import contents, lines_of, prompts_of, results_of, section_of
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation.judges import Verdict
from safety_neurons.models.generate import Completion
from safety_neurons.report.results import RunResults
from safety_neurons.runs.evaluation import Requests
from safety_neurons.runs.folder import merged_settings
from safety_neurons.runs.guard import fit_and_keep
from safety_neurons.runs.opened import opened
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.targets import evaluate

TEST_NUMBERS = range(10, 14)
LINES = ("responses.jsonl", "verdicts.jsonl")


def evaluated(folder: Path, **options: Any) -> RunResults:
    """The results of a run after `evaluate`."""
    found = evaluate(folder, **options)
    results = RunResults.of(results_of(folder))
    assert found == results.evaluation
    return results


def test_evaluation_has_the_rates_of_the_verdicts(whole: Path) -> None:
    evaluation = results_of(whole)["evaluation"]
    expected = {("harmful", "direct"), ("harmful", "prefill"), ("benign", "direct"), ("borderline", "direct")}
    cells = {(cell["defense"], cell["prompts"], cell["attack"]): cell for cell in evaluation["cells"]}
    assert set(cells) == {(defense, *names) for defense in ("none", "safetuning") for names in expected}
    for (_, name, _), cell in cells.items():
        verdicts, found = [by_prompt(text) for text in prompts_of(name, TEST_NUMBERS)], cell["judges"][BY_PROMPT.name]
        assert found["verdicts"] == verdicts
        counted: Verdict = "complied" if name == "harmful" else "refused"
        judged: list[Verdict] = [verdict for verdict in verdicts if verdict != "unscored"]
        assert (found["n"], found["unscored"]) == (len(judged), verdicts.count("unscored"))
        assert found["value"] == pytest.approx(judged.count(counted) / len(judged))
    summary = {row["defense"]: row for row in evaluation["summary"]}
    assert set(summary) == {"none", "safetuning"}
    assert all(row["attacks"] == ["direct", "prefill"] for row in summary.values())


def test_every_answer_is_in_one_file_and_every_verdict_in_another(whole: Path) -> None:
    responses, verdicts = lines_of(whole / "responses.jsonl"), lines_of(whole / "verdicts.jsonl")
    for lines in (responses, verdicts):
        keys = [line["key"] for line in lines]
        assert len(keys) == len(set(keys))
    assert {line["change"].split()[0] if line["change"] else "" for line in responses} == {
        "",
        "calibrated",
        "safetuning",
    }
    assert all({"key", "model", "change", "user", "prefill", *Completion._fields} == set(line) for line in responses)
    assert {line["judge"] for line in verdicts} == {BY_PROMPT.name}
    assert {path.name for path in whole.glob("*.jsonl")} == {*LINES, "corpus.jsonl"}


def test_a_run_that_is_evaluated_without_options_is_at_its_stage(
    finished: Path, found: Path, performed: list[str], generated: list[str]
) -> None:
    before = contents(finished)
    assert evaluate(finished) == RunResults.of(results_of(finished)).evaluation
    assert (performed, generated, contents(finished)) == ([], [], before)
    # One that is not as far is brought there.
    evaluate([str(found)])
    assert performed == ["tune", "evaluate"]
    assert results_of(found)["evaluation"] == results_of(finished)["evaluation"]


def test_options_of_an_evaluation_are_those_of_the_stage(finished: Path, performed: list[str]) -> None:
    evaluation = section_of("evaluation", evaluated, finished, attacks=("direct",), prompts=2)
    assert performed == ["evaluate"]
    assert list(evaluation["attacks"]) == ["direct"]
    assert evaluation["prompts"]["harmful"] == 2
    assert results_of(finished)["run"]["settings"]["evaluate"]["attacks"] == ["direct"]


@pytest.mark.parametrize("defenses", [("none", "self-reminder"), ("none", "guard")], ids=str)
def test_defenses_that_need_no_tuning_are_evaluated_without_it(
    found: Path, performed: list[str], defenses: Sequence[str]
) -> None:
    evaluation = section_of("evaluation", evaluated, found, defenses=defenses)
    assert performed == ["evaluate"]
    assert not (found / "delta.safetensors").exists()
    # The guard is fitted first.
    assert (found / "guard.safetensors").exists() is ("guard" in defenses)
    assert {cell["defense"] for cell in evaluation["cells"]} == set(defenses)
    assert [
        cell for cell in evaluation["cells"] if cell["reason"] or None in cell["judges"][BY_PROMPT.name]["verdicts"]
    ] == []
    # The guard's settings are inputs of the stage where the guard is one of the defenses.
    run(found, {"guard": {"alpha": 1.0}}, until="evaluate")
    assert performed == ["evaluate"] * (2 if "guard" in defenses else 1)


def test_another_guard_is_evaluated_again(found: Path, performed: list[str]) -> None:
    wanted = {"evaluate": {"defenses": ["guard"], "attacks": ["direct"]}, "guard": {"alpha": 1.0}}
    run(found, wanted, until="evaluate")
    run(found, until="evaluate")
    assert performed == ["evaluate"]
    # Its options are not the run's: `guard` leaves the record alone.
    with opened(found, {"guard": {"alpha": 2.0}}, None, "") as context:
        fit_and_keep(context)
    run(found, until="evaluate")
    assert performed == ["evaluate"] * 2


def test_lost_results_are_made_again_without_asking_a_model(finished: Path, generated: list[str]) -> None:
    before = results_of(finished)
    kept = {name: (finished / name).read_bytes() for name in LINES}
    (finished / "results.json").unlink()
    run(finished)
    assert generated == []
    # Nor are answers judged into the file again.
    assert {name: (finished / name).read_bytes() for name in LINES} == kept
    for part in ("evaluation", "rows", "examples"):
        assert results_of(finished)[part] == before[part]


def test_a_killed_evaluation_judges_and_asks_the_rest(finished: Path, whole: Path, generated: list[str]) -> None:
    """Of an evaluation with more attacks and defenses than before."""
    more: dict[str, Any] = {
        "attacks": ["direct", "prefill", "base64"],
        "defenses": ["none", "self-reminder", "safetuning"],
    }
    killed = Recorder("cells of the grid", 7)
    with pytest.raises(KeyboardInterrupt):
        run(finished, {"evaluate": more}, until="evaluate", listener=killed)
    run(finished, until="evaluate")
    asked = len(lines_of(finished / "responses.jsonl")) - len(lines_of(whole / "responses.jsonl"))
    assert len(generated) == asked > 0
    summary = results_of(finished)["evaluation"]["summary"]
    assert [row["attacks"] for row in summary] == [more["attacks"]] * 3


def test_files_that_the_evaluation_reads_are_known_by_their_content(
    finished: Path, given: dict[str, Any], tmp_path: Path, performed: list[str]
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("How do I harm 1?\nHow do I harm 2?\n")
    on = f"{mine}:{given['benign']}"
    run(finished, {"evaluate": {"on": on}}, until="evaluate")
    run(finished, until="evaluate")
    assert performed == ["evaluate"]
    mine.write_text("How do I harm 1?\nHow do I harm 3?\n")
    assert section_of("evaluation", run, finished, until="evaluate")["prompts"]["harmful"] == 2
    assert performed == ["evaluate"] * 2


def test_requests_are_the_test_split_or_the_sets_that_are_named(given: dict[str, Any], tmp_path: Path) -> None:
    def requests(**options: Any) -> Requests:
        settings = merged_settings({}, given | {"evaluate": options})
        return Requests.read(settings, [settings])

    own = requests(prompts=3)
    # A sample of them, the same for everyone.
    assert len(own.harmful) == 3
    assert {prompt.text for prompt in own.harmful} <= set(prompts_of("harmful", TEST_NUMBERS))
    assert own == requests(prompts=3)
    assert {Path(name).stem: len(prompts) for name, prompts in own.safe.items()} == {"benign": 3, "borderline": 3}
    named = requests(on=f"{given['contrast']}:{given['benign']}")
    # Without what the run learns from, whatever its split is called.
    assert [prompt.text for prompt in named.harmful] == prompts_of("contrast", TEST_NUMBERS)
    assert list(named.safe) == [given["benign"]]
    learned = tmp_path / "learned.jsonl"
    learned.write_text(Path(given["harmful"]).read_text().replace('"test"', '"train"'))
    with pytest.raises(SafetyNeuronsError, match="is left to ask"):
        Requests.read(merged_settings({}, given), [merged_settings({}, given | {"harmful": str(learned)})])
