"""The validation of a run: which prompts it asks, what its rates mean, and what a training makes of them."""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from safety_neurons import run
from safety_neurons.core.files import read_json
from safety_neurons.evaluation import attacks, judges
from safety_neurons.evaluation.judges import Judgment, RuleJudge, Verdict
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import Completion
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.opened import opened
from safety_neurons.runs.validation import Validator
from safety_neurons.tuning.augmentation import AUGMENTATIONS, VALIDATION
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta

answers_module = importlib.import_module("safety_neurons.runs.answers")
Lines = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture
def work(given: dict[str, Any], tmp_path: Path) -> Iterator[RunContext]:
    with opened(tmp_path / "run", given, None, "") as place:
        yield place


def number(prompt_id: str) -> int:
    """Prompts are numbered from 1: six to train on, two for validation, three for the test."""
    return int(prompt_id.rsplit("-", 1)[1])


def test_the_untouched_model_refuses_nothing_that_it_answers(work: RunContext, lines: Lines) -> None:
    validator = Validator.open(work)
    asked = lines(work.folder.responses)
    assert {number(line["prompt_id"]) for line in asked} == {7, 8}
    assert sum(len(requests.prompts) for requests in validator.safe) > 0
    found = validator.measure_base()
    assert found.over_refusal == 0
    assert 0 <= found.attack_success <= 1
    before = work.folder.responses.read_bytes()
    # Only the harmful requests were new, and nothing is asked twice.
    assert len(lines(work.folder.responses)) - len(asked) == 4
    assert Validator.open(work).measure_base() == found
    assert work.folder.responses.read_bytes() == before


class Script:
    """A model that says what it is told, and a judge that takes it at its word."""

    def __init__(self) -> None:
        self.harmful, self.benign, self.borderline, self.augmented = "complied", "complied", "complied", "complied"

    def generate(
        self, _model: ChatModel, texts: Sequence[str], *, done: frozenset[int], **_: Any
    ) -> Iterator[tuple[int, Completion]]:
        for index in set(range(len(texts))) - done:
            text = texts[index]
            plain = text.startswith("<|user|>") and text.endswith("<|end|><|assistant|>")
            if "process" in text:
                said = self.borderline
            elif "recipe" in text:
                said = self.benign if plain and "<|user|>Show" in text and "please.<|end|>" in text else self.augmented
            else:
                said = self.harmful
            yield index, Completion(said, cut_off=False)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    told = Script()

    def judge(_request: str, response: str) -> Judgment:
        verdicts: tuple[Verdict, ...] = ("complied", "refused", "unscored")
        return Judgment(next(one for one in verdicts if response.endswith(one)), "said so")

    monkeypatch.setattr(answers_module, "generate", told.generate)
    monkeypatch.setattr(judges, "get", lambda _name: RuleJudge("refusal", "by word", judge))
    return told


def test_refused_and_broken_answers_both_count_as_no_longer_answered(work: RunContext, script: Script) -> None:
    """Of two benign requests, plain and disguised, and two borderline ones."""
    validator = Validator.open(work)
    assert [len(requests.prompts) for requests in validator.safe] == [4, 2]
    assert validator.measure("as before") == validator.measure_base()
    script.borderline = "unscored"
    assert validator.measure("borderline broken").over_refusal == pytest.approx(2 / 6)
    script.augmented = "refused"
    assert validator.measure("disguised refused").over_refusal == pytest.approx(4 / 6)
    script.benign = "refused"
    assert validator.measure("all").over_refusal == 1


def test_attack_success_is_that_of_the_judged_answers(work: RunContext, script: Script) -> None:
    validator = Validator.open(work)
    for said, expected in (("complied", 1.0), ("refused", 0.0), ("unscored", 0.0)):
        script.harmful = said
        assert validator.measure(said).attack_success == expected


def test_what_the_untouched_model_refuses_is_no_cost(work: RunContext, script: Script) -> None:
    script.borderline, script.augmented = "refused", "unscored"
    validator = Validator.open(work)
    assert [len(requests.prompts) for requests in validator.safe] == [2, 0]
    assert validator.measure("the same").over_refusal == 0
    script.benign = "refused"
    assert validator.measure("less").over_refusal == 1


def test_a_model_that_answers_nothing_can_be_measured(work: RunContext, script: Script) -> None:
    script.borderline = script.augmented = script.benign = "refused"
    validator = Validator.open(work)
    assert validator.measure_base().over_refusal == 0
    assert validator.kl_divergence(contextlib.nullcontext) == 0


def test_divergence_is_zero_until_something_changes(given: dict[str, Any], tmp_path: Path) -> None:
    with opened(tmp_path / "run", given, None, "", until="tune") as work:
        validator, delta = Validator.open(work), NeuronDelta.load(work.folder.delta)
        assert validator.kl_divergence(contextlib.nullcontext) == 0
        assert validator.kl_divergence(lambda: delta.apply(work.model)) > 0


def test_validation_has_disguises_of_its_own() -> None:
    """Neither training nor the evaluation has one of them, in whole or as a part."""
    mark = "REQUEST"
    own = [augment(mark) for augment in VALIDATION]
    others = [augment(mark) for augment in AUGMENTATIONS]
    others += [
        attack.apply(mark) for attack in map(attacks.get, attacks.names()) if isinstance(attack, attacks.Template)
    ]
    assert len({(one.user, one.prefill) for one in own}) == len(VALIDATION)
    taken = [part.strip() for one in others for part in (*one.user.split(mark), one.prefill) if part.strip()]
    for one in own:
        parts = [part.strip() for part in (*one.user.split(mark), one.prefill) if part.strip()]
        assert parts
        assert not [part for part in parts for other in taken if part in other or other in part]


def test_nothing_of_validation_or_test_is_trained_on(
    given: dict[str, Any], tmp_path: Path, lines: Lines, script: Script
) -> None:
    script.harmful = "refused"
    run(tmp_path / "run", given, until="tune")
    pairs = Corpus.load(tmp_path / "run" / "corpus.jsonl").pairs
    assert {pair.kind for pair in pairs} == {"refusal", "benign", "borderline"}
    assert {number(pair.prompt_id) for pair in pairs} <= {1, 2, 3, 4, 5, 6}
    assert {number(line["prompt_id"]) for line in lines(tmp_path / "run" / "responses.jsonl")} <= {1, 2, 3, 4, 5, 6}
    for pair in pairs:
        assert not [n for n in range(6, 11) if f" {n} " in f"{pair.user} "]


def test_a_run_with_patience_ends_with_the_best_weights(
    given: dict[str, Any], tmp_path: Path, watching: Callable[..., Any]
) -> None:
    folder = tmp_path / "run"
    given["tune"] |= {"patience": 3, "validate_every": 1, "learning_rate": 0.05, "epochs": 2}
    training = run(folder, given, until="tune")["training"]
    seen = training["validation"]
    assert [one["step"] for one in seen] == list(range(1, len(seen) + 1))
    assert len(seen) == len(training["loss"])
    harms = [one["attack_success"] + one["over_refusal"] for one in seen]
    assert len(set(harms)) > 1
    before = (folder / "responses.jsonl").read_bytes()
    with opened(folder, None, None, "", until="tune") as work:
        validator, delta = Validator.open(work), NeuronDelta.load(work.folder.delta)
        with delta.apply(work.model):
            found = validator.measure(delta.digest)
    assert found.attack_success + found.over_refusal == pytest.approx(min(harms))
    # These very weights were measured already.
    assert (folder / "responses.jsonl").read_bytes() == before


def test_a_run_without_patience_asks_no_validation_prompt(given: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "run", given, until="tune")
    assert read_json(tmp_path / "run" / "results.json")["training"]["validation"] == []
