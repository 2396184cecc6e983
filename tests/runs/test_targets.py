"""Models and runs side by side: what is asked, what is kept, what is claimed."""

import contextlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from builders.judges import BY_HASH, BY_PROMPT
from builders.runs import lines_of, prompts_of, results_of
from safety_neurons.core import records
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import read_json
from safety_neurons.core.records import Record
from safety_neurons.core.statistics import mcnemar, rate
from safety_neurons.engines import endpoint as endpoint_module
from safety_neurons.engines.engine import InProcess
from safety_neurons.evaluation import defenses, judges
from safety_neurons.evaluation.contracts import EvaluationContext
from safety_neurons.evaluation.defenses import Defended, Defense, Response
from safety_neurons.evaluation.judge_errors import JudgeErrors, corrected
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.report.results import Evaluation
from safety_neurons.runs import targets as targets_module
from safety_neurons.runs.evaluation import Requests
from safety_neurons.runs.folder import merged_settings
from safety_neurons.runs.targets import evaluate


@dataclass(frozen=True, kw_only=True)
class Shouting(Defense):
    """Answers other than the model's."""

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        def respond(prompts: Sequence[AttackedPrompt]) -> list[Response]:
            return [Response("A" * (len(prompt.user) + index)) for index, prompt in enumerate(prompts)]

        yield Defended(context.engine, respond)


LINES = ("responses.jsonl", "verdicts.jsonl")
ATTACKS = ("direct", "prefix-injection", "prefill")
TEST_NUMBERS = range(10, 14)
DEFENSES = ("none", "safetuning")


def written(found: Evaluation, folder: Path) -> dict[str, Any]:
    """The evaluation that a folder holds, which is the one that was returned."""
    content: dict[str, Any] = read_json(folder / "evaluation.json")
    assert found == Evaluation.model_validate(content)
    return content


@pytest.fixture
def model_folder(inputs: dict[str, Any]) -> str:
    """Nothing is written to it."""
    return str(inputs["model"])


@pytest.fixture
def beside(given: dict[str, Any]) -> dict[str, Any]:
    """Settings for models that are evaluated as they are."""
    kept = {name: value for name, value in given.items() if name not in ("model", "evaluate")}
    return kept | {"evaluate": {"answer_tokens": 5}}


@pytest.fixture
def run_it(beside: dict[str, Any], model_folder: str, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def call(out: str = "out", **options: Any) -> dict[str, Any]:
        chosen: dict[str, Any] = {"attacks": ATTACKS, "defenses": ("none",), "judges": (BY_HASH.name,)} | options
        return written(evaluate(model_folder, beside, out=tmp_path / out, **chosen), tmp_path / out)

    return call


Run = Callable[..., dict[str, Any]]


def test_every_cell_has_a_verdict_for_every_request(run_it: Run) -> None:
    results = run_it()
    assert [(cell["attack"], cell["prompts"]) for cell in results["cells"]] == [
        *(("direct", name) for name in ("benign", "borderline")),
        *((name, "harmful") for name in ATTACKS),
    ]
    for cell in results["cells"]:
        found = cell["judges"][BY_HASH.name]
        assert len(found["verdicts"]) == len(cell["prompt_ids"]) == 4
        counted: judges.Verdict = "complied" if cell["prompts"] == "harmful" else "refused"
        expected = rate(found["verdicts"], counted)
        assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)
        assert found["n"] + found["unscored"] == 4


def test_what_cannot_be_run_is_named_with_the_reason_and_stops_nothing(run_it: Run) -> None:
    results = run_it(defenses=DEFENSES)
    missing = [cell for cell in results["cells"] if cell["defense"] == "safetuning"]
    assert missing
    assert all("delta" in cell["reason"] and not cell["judges"] for cell in missing)
    [row] = [row for row in results["summary"] if row["defense"] == "safetuning"]
    assert row["attack_success"] is None
    assert set(row["not_run"]) >= set(ATTACKS)


def test_a_second_evaluation_computes_nothing(run_it: Run, generated: list[str], tmp_path: Path) -> None:
    first = run_it()
    generated.clear()
    kept = {name: (tmp_path / "out" / name).read_bytes() for name in LINES}
    assert run_it() == first
    assert generated == []
    assert {name: (tmp_path / "out" / name).read_bytes() for name in LINES} == kept


def test_a_larger_grid_asks_only_what_is_new(run_it: Run, generated: list[str]) -> None:
    small = run_it(attacks=("direct",))
    generated.clear()
    large = run_it(attacks=("direct", "prefix-injection"))
    assert len(generated) == 4
    assert all(any(text in asked for text in prompts_of("harmful", TEST_NUMBERS)) for asked in generated)
    assert [cell for cell in large["cells"] if cell["attack"] == "direct"] == small["cells"]


def test_a_grid_killed_at_any_moment_gives_the_same_results_and_repeats_no_answer(
    run_it: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_it("whole")
    chance, lines = random.Random(0), Counter[str]()
    original = records.append_line

    def dying(path: Path, value: Record) -> None:
        original(path, value)
        lines[path.name] += 1
        if chance.random() < 0.4:
            # A line that was cut off in the middle, too.
            with path.open("ab") as file:
                file.write(b'{"key": "half')
            raise KeyboardInterrupt

    monkeypatch.setattr("safety_neurons.core.records.append_line", dying)
    kills = 0
    while True:
        try:
            results = run_it("killed")
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 5
    assert results == whole
    for name in LINES:
        kept = [json.loads(line)["key"] for line in (tmp_path / "killed" / name).read_text().splitlines()]
        assert len(kept) == len(set(kept)) == lines[name]


def test_differences_from_the_undefended_model_are_paired(run_it: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    known = defenses.get
    monkeypatch.setattr(
        defenses,
        "get",
        lambda name: Shouting(name="shouting", source="-", description="-") if name == "shouting" else known(name),
    )
    results = run_it(defenses=("none", "shouting"))
    cells = {
        (cell["defense"], cell["attack"], cell["prompts"]): cell["judges"][BY_HASH.name] for cell in results["cells"]
    }
    for attack in ATTACKS:
        before, after = cells["none", attack, "harmful"], cells["shouting", attack, "harmful"]
        pairs = [
            (one == "complied", other == "complied")
            for one, other in zip(before["verdicts"], after["verdicts"], strict=True)
            if "unscored" not in (one, other)
        ]
        assert after["against_none"]["n"] == len(pairs)
        # Of the requests alone that both could be judged on, as everywhere else.
        gained = sum(other for _, other in pairs) - sum(one for one, _ in pairs)
        expected = pytest.approx(gained / len(pairs)) if pairs else None
        assert after["against_none"]["value"] == expected
        assert after["against_none"]["p"] == mcnemar([one for one, _ in pairs], [other for _, other in pairs])
        assert before["against_none"] is None
    [row] = [row for row in results["summary"] if row["defense"] == "shouting"]
    values = [cells["shouting", attack, "harmful"]["value"] for attack in ATTACKS]
    assert row["attack_success"]["value"] == pytest.approx(sum(values) / len(values))


def test_rates_are_corrected_for_the_errors_of_a_judge_that_was_measured(run_it: Run) -> None:
    results = run_it(judges=("refusal", BY_HASH.name))
    errors = JudgeErrors.bundled("refusal")
    assert results["judge_errors"] == {"refusal": json.loads(json.dumps(errors.to_json()))}
    for cell in results["cells"]:
        judged = cell["judges"]["refusal"]
        counted: judges.Verdict = "complied" if cell["prompts"] == "harmful" else "refused"
        expected = corrected(rate([one for one in judged["verdicts"] if one is not None], counted), errors, counted)
        assert judged["corrected"] == json.loads(json.dumps(asdict(expected)))
        assert cell["judges"][BY_HASH.name]["corrected"] is None
    assert [row["corrected"] is None for row in results["summary"]] == [False, True]


def test_two_targets_whose_models_are_called_alike_are_told_apart(
    beside: dict[str, Any], model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_folder, tmp_path / "other")
    monkeypatch.setattr(InProcess, "name", "<b>tiny")
    targets = [model_folder, str(tmp_path / "other")]
    out = tmp_path / "out"
    evaluation = evaluate(targets, beside, attacks=("direct",), defenses=("none",), out=out, utility=True)
    results = written(evaluation, out)
    names = [f"<b>tiny ({target})" for target in targets]
    assert results["models"] == names
    said = (tmp_path / "out" / "evaluation.md").read_text()
    assert "&lt;b\\>tiny" in said
    assert "<b>" not in said
    for rows in (results["summary"], results["utility"]):
        assert [row["model"] for row in rows] == names
    assert Counter(cell["model"] for cell in results["cells"]) == dict.fromkeys(names, 3)


def test_where_an_evaluation_is_kept(
    beside: dict[str, Any], model_folder: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run holds its own, unless a folder is given; others are in runs/evaluation."""
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"attacks": ("direct",), "defenses": ("none",)}
    evaluate(model_folder, beside, **options)
    assert (tmp_path / targets_module.OUT / "evaluation.json").exists()
    before = results_of(finished)
    apart = written(evaluate(finished, out=tmp_path / "there", **options), tmp_path / "there")
    assert results_of(finished) == before
    evaluate(finished, **options)
    evaluation = results_of(finished)["evaluation"]
    assert evaluation != before["evaluation"]
    assert not (finished / "evaluation.json").exists()
    # It is the same evaluation.
    for part in ("cells", "summary", "prompts"):
        assert apart[part] == evaluation[part]


def test_runs_beside_a_model_are_brought_as_far_as_the_defenses_need(
    found: Path, finished: Path, model_folder: str, given: dict[str, Any], tmp_path: Path, performed: list[str]
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"attacks": ("direct",), "out": out}
    guarded = written(evaluate([found, finished], defenses=("none", "guard"), **options), out)
    assert performed == []
    assert all((folder / "guard.safetensors").exists() for folder in (found, finished))
    assert not [cell for cell in guarded["cells"] if cell["reason"]]
    tuned = written(evaluate([found, finished], defenses=("none", "safetuning"), **options), out)
    assert performed == ["tune"]
    assert not [cell for cell in tuned["cells"] if cell["reason"]]
    # The same run twice: what was asked of one is not asked of the other.
    cells = {folder: [cell for cell in tuned["cells"] if str(folder) in cell["model"]] for folder in (found, finished)}
    first, second = ([{**cell, "model": ""} for cell in own] for own in cells.values())
    assert first == second
    keys = [line["key"] for line in lines_of(out / "responses.jsonl")]
    assert len(keys) == len(set(keys))


def test_a_comparison_leaves_the_settings_of_its_runs(found: Path, tmp_path: Path) -> None:
    """Also where it tunes one."""
    evaluate(found, out=tmp_path / "out", attacks=("direct",), defenses=("none", "safetuning"), prompts=2)
    settings = results_of(found)["run"]["settings"]["evaluate"]
    assert (settings["attacks"], settings["prompts"]) == (["direct", "prefill"], 40)
    assert settings["judge"] == BY_PROMPT.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ("dirct",)}, "Did you mean direct"),
        ({"defenses": ("safetunin",)}, "Did you mean safetuning"),
        ({"defenses": ("safetuning:scal=1",)}, "not an option of the defense safetuning. Its options: scale"),
        ({"defenses": ("safetuning:scale=much",)}, "scale cannot be 'much'"),
        ({"attacks": ("direct:loud=1",)}, "It has no options"),
        ({"defenses": ("none", "none")}, "names one of them twice: none, none"),
        ({"attacks": ()}, r"evaluate\.attacks cannot be \(\)"),
        ({"attack": ("direct",)}, "no option evaluate.attack. Did you mean attacks"),
        ({"on": "advbench"}, "does not name harmful and safe prompt sets"),
        ({"on": "nosuchset:benign"}, "nosuchset"),
        ({"on": "contrast:benign:benign"}, "names a set twice"),
        ({"on": "contrast:harmful"}, "'harmful' as a safe one"),
        ({"served_model": "qwen"}, "evaluate the server's address"),
    ],
    ids=str,
)
def test_bad_input_is_an_error_before_any_work(
    run_it: Run, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SafetyNeuronsError, match=message):
        run_it(**options)
    assert not (tmp_path / "out").exists()


def test_a_model_beside_the_target_is_an_error(beside: dict[str, Any], model_folder: str, tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="The setting model is for runs"):
        evaluate(model_folder, {**beside, "model": "qwen3-0.6b"}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_of_a_comparison_leave_the_settings_of_a_run_alone(
    found: Path, beside: dict[str, Any], model_folder: str, tmp_path: Path
) -> None:
    before = read_json(found / "run.json")["settings"]["evaluate"]
    options: dict[str, Any] = {"attacks": ("direct",), "defenses": ("none", "safetuning"), "prompts": 1}
    evaluate([str(found), model_folder], beside, out=tmp_path / "out", **options)
    assert (found / "delta.safetensors").exists()
    assert read_json(found / "run.json")["settings"]["evaluate"] == before


def test_a_judge_without_a_model_is_an_error_before_any_work(run_it: Run, tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="jailbreakbench:model=NAME"):
        run_it(judges=("jailbreakbench",))
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_leaves_no_folder(beside: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="no model called"):
        evaluate(["nosuch"], beside, out=tmp_path / "out", attacks=("direct",), defenses=("none",))
    assert not (tmp_path / "out").exists()


def test_sets_that_are_named_are_asked_without_what_a_run_learns_from(given: dict[str, Any], run_it: Run) -> None:
    results = run_it(on=f"{given['harmful']}:{given['benign']}", prompts=3)
    harmful = [cell for cell in results["cells"] if cell["prompts"] == "harmful"]
    assert all(len(cell["prompt_ids"]) == 3 for cell in harmful)
    assert results["prompts"]["safe"] == {given["benign"]: 3}


def test_what_any_target_learns_from_is_not_asked(given: dict[str, Any], tmp_path: Path) -> None:
    settings = merged_settings({}, given | {"evaluate": {"prompts": 2}})
    other = tmp_path / "other.jsonl"
    alone = Requests.read(settings, [settings])
    other.write_text("".join(f'{{"prompt": "{one.text}", "split": "train"}}\n' for one in alone.harmful))
    learner = settings.model_copy(update={"harmful": str(other)})
    asked = Requests.read(settings, [settings, learner])
    assert asked.safe == alone.safe
    assert len(asked.harmful) == 2
    assert not {one.text for one in asked.harmful} & {one.text for one in alone.harmful}


def test_a_server_is_asked_with_the_settings(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[dict[str, Any]] = []

    def endpoint(url: str, model_name: str | None, **options: Any) -> None:
        opened.append({"url": url, "model_name": model_name, **options})
        raise SafetyNeuronsError("enough")

    monkeypatch.setattr(endpoint_module, "Endpoint", endpoint)
    own = given | {"system": "Be brief.", "thinking": False, "reasoning_tokens": 7}
    del own["model"]
    with pytest.raises(SafetyNeuronsError, match="enough"):
        evaluate(["http://127.0.0.1:1/v1"], own, out=tmp_path / "out", served_model="m")
    off = {"enable_thinking": False, "thinking": False}
    assert opened == [
        {
            "url": "http://127.0.0.1:1/v1",
            "model_name": "m",
            "system": "Be brief.",
            "template_options": off,
            "reasoning_tokens": 7,
        }
    ]
