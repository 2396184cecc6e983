"""The grid over a tiny model: what is asked, what is kept, what is claimed."""

import contextlib
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.core import files as storage
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.statistics import mcnemar, rate
from safety_neurons.engines import engine as in_process
from safety_neurons.engines.engine import InProcess
from safety_neurons.evaluation import defenses, judges
from safety_neurons.evaluation.contracts import EvaluationContext
from safety_neurons.evaluation.defenses import Defended, Defense, Response
from safety_neurons.evaluation.judges import Judgment, RuleJudge
from safety_neurons.evaluation.judges.yes_no import JUDGES
from safety_neurons.evaluation.measures import Extras
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.runs.evaluation import evaluate, folder_of
from safety_neurons.runs.folder import merged_settings
from safety_neurons.runs.targets import Requests


@dataclass(frozen=True, kw_only=True)
class Shouting(Defense):
    """Answers other than the model's."""

    @contextlib.contextmanager
    def opened(self, context: EvaluationContext) -> Iterator[Defended]:
        def respond(prompts: Sequence[AttackedPrompt]) -> list[Response]:
            return [Response("A" * (len(prompt.user) + index)) for index, prompt in enumerate(prompts)]

        yield Defended(context.engine, respond)


ATTACKS = ("direct", "prefix-injection", "prefill")
DEFENSES = ("none", "safetuning")


@pytest.fixture(autouse=True)
def _judge_by_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = RuleJudge(
        "refusal", "this test", lambda _, text: Judgment(("refused", "complied", "unscored")[len(text) % 3], "length")
    )
    monkeypatch.setattr(judges, "get", lambda name: judge)


@pytest.fixture
def run_it(given: dict[str, Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def call(out: str = "out", **options: Any) -> dict[str, Any]:
        chosen: dict[str, Any] = {"attacks": ATTACKS, "defenses": ("none",), "out": tmp_path / out} | options
        return evaluate([str(tmp_path / "model")], given, **chosen)

    return call


Run = Callable[..., dict[str, Any]]


def test_every_cell_has_a_verdict_for_every_request(run_it: Run) -> None:
    results = run_it()
    assert [(cell["attack"], cell["prompts"]) for cell in results["cells"]] == [
        *(("direct", name) for name in ("benign", "borderline")),
        *((name, "harmful") for name in ATTACKS),
    ]
    for cell in results["cells"]:
        found = cell["judges"]["refusal"]
        assert len(found["verdicts"]) == len(cell["prompt_ids"]) == 10
        counted: judges.Verdict = "complied" if cell["prompts"] == "harmful" else "refused"
        expected = rate(found["verdicts"], counted)
        assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)
        assert found["n"] + found["unscored"] == 10


def test_what_cannot_be_run_is_named_with_the_reason_and_stops_nothing(run_it: Run) -> None:
    results = run_it(defenses=DEFENSES)
    missing = [cell for cell in results["cells"] if cell["defense"] == "safetuning"]
    assert missing
    assert all("delta" in cell["reason"] and not cell["judges"] for cell in missing)
    [row] = [row for row in results["summary"] if row["defense"] == "safetuning"]
    assert row["attack_success"] is None
    assert set(row["not_run"]) >= set(ATTACKS)


def test_a_second_run_computes_nothing(run_it: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_it()
    monkeypatch.setattr(in_process, "generate", _never)
    assert run_it() == first


def _never(*_arguments: Any, **_options: Any) -> None:
    raise AssertionError("nothing is to be computed")


def test_a_larger_grid_asks_only_what_is_new(run_it: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small = run_it(attacks=("direct",))
    asked: list[str] = []
    original = InProcess.answer

    def listening(self: InProcess, conversations: Sequence[Any], **options: Any) -> Any:
        asked.extend(one.turns[-1].content for one in conversations)
        return original(self, conversations, **options)

    monkeypatch.setattr(InProcess, "answer", listening)
    large = run_it(attacks=("direct", "prefix-injection"))
    assert len(asked) == 10
    assert all("request" in text and not text.startswith("benign") for text in asked)
    assert [cell for cell in large["cells"] if cell["attack"] == "direct"] == small["cells"]


def test_a_grid_killed_at_any_moment_gives_the_same_results_and_repeats_no_answer(
    run_it: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_it("whole")
    chance, lines = random.Random(0), Counter[str]()
    original = storage.append_line

    def dying(path: Path, value: dict[str, Any]) -> None:
        original(path, value)
        lines[path.name] += 1
        if chance.random() < 0.2:
            # A line that was cut off in the middle, too.
            with path.open("ab") as file:
                file.write(b'{"key": "half')
            raise KeyboardInterrupt

    monkeypatch.setattr("safety_neurons.core.files.append_line", dying)
    kills = 0
    while True:
        try:
            results = run_it("killed")
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 5
    assert results == whole
    for name in ("generations.jsonl", "answers.jsonl"):
        kept = storage.read_lines(tmp_path / "killed" / name)
        assert len(kept) == len({line["key"] for line in kept}) == lines[name]


def test_differences_from_the_undefended_model_are_paired(run_it: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    known = defenses.get
    monkeypatch.setattr(
        defenses,
        "get",
        lambda name: Shouting(name="shouting", source="-", description="-") if name == "shouting" else known(name),
    )
    results = run_it(defenses=("none", "shouting"))
    cells = {(cell["defense"], cell["attack"], cell["prompts"]): cell["judges"]["refusal"] for cell in results["cells"]}
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


def test_two_targets_whose_models_are_called_alike_are_told_apart(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    monkeypatch.setattr(InProcess, "name", "<b>tiny")
    targets = [str(tmp_path / "model"), str(tmp_path / "other")]
    results = evaluate(
        targets, given, attacks=("direct",), defenses=("none",), out=tmp_path / "out", extras=Extras(utility=True)
    )
    names = [f"<b>tiny ({target})" for target in targets]
    assert results["models"] == names
    said = (tmp_path / "out" / "evaluation.md").read_text()
    assert "&lt;b>tiny" in said
    assert "<b>" not in said
    for rows in (results["summary"], results["utility"]):
        assert [row["model"] for row in rows] == names
    assert Counter(cell["model"] for cell in results["cells"]) == dict.fromkeys(names, 3)


def test_where_an_evaluation_is_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    run = str(tmp_path / "run")
    assert folder_of([run], None) == tmp_path / "run" / "evaluation"
    assert folder_of([run, "qwen3-0.6b"], None) == folder_of(["qwen3-0.6b"], None) == Path("runs/evaluation")
    assert folder_of([run], tmp_path / "there") == tmp_path / "there"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ("dirct",)}, "Did you mean direct"),
        ({"defenses": ("safetunin",)}, "Did you mean safetuning"),
        ({"defenses": ("safetuning:scal=1",)}, "no option of the defense safetuning. Its options: scale"),
        ({"defenses": ("safetuning:scale=much",)}, "scale cannot be 'much'"),
        ({"attacks": ("direct:loud=1",)}, "It has no options"),
        ({"defenses": ("none", "none")}, "each of them once"),
        ({"attacks": ()}, "at least one of --attacks"),
        ({"on": "advbench"}, "names no harmful and safe prompt sets"),
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


def test_a_model_beside_the_target_is_an_error(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="--model is for runs"):
        evaluate([str(tmp_path / "model")], {**given, "model": "qwen3-0.6b"}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_judge_without_a_model_is_an_error_before_any_work(
    run_it: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "get", lambda name: JUDGES[0])
    with pytest.raises(SafetyNeuronsError, match="jailbreakbench:model=NAME"):
        run_it(judges=("jailbreakbench",))
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_leaves_no_folder(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="no model called"):
        evaluate(["nosuch"], given, out=tmp_path / "out", attacks=("direct",), defenses=("none",))
    assert not (tmp_path / "out").exists()


def test_sets_that_are_named_are_asked_without_what_a_run_learns_from(given: dict[str, Any], run_it: Run) -> None:
    results = run_it(on=f"{given['harmful']}:{given['benign']}", limit=4)
    harmful = [cell for cell in results["cells"] if cell["prompts"] == "harmful"]
    assert all(len(cell["prompt_ids"]) == 4 for cell in harmful)
    assert results["prompts"]["safe"] == {given["benign"]: 4}


def test_what_any_target_learns_from_is_not_asked(given: dict[str, Any], tmp_path: Path) -> None:
    settings = merged_settings({}, given)
    other = tmp_path / "other.jsonl"
    alone = Requests.read(settings, None, 3, [settings])
    other.write_text("".join(f'{{"prompt": "{one.text}", "split": "train"}}\n' for one in alone.harmful))
    learner = settings.model_copy(update={"harmful": str(other)})
    asked = Requests.read(settings, None, 3, [settings, learner])
    assert asked.safe == alone.safe
    assert len(asked.harmful) == 3
    assert not {one.text for one in asked.harmful} & {one.text for one in alone.harmful}
