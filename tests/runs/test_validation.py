"""The validation of a run: which prompts it asks, and what its rates mean."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.disguises import HELD_BACK, TRAINED, parts_of, shared
from builders.judges import BY_HASH, BY_WORD
from builders.runs import lines_of
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import Completion
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.folder import merged_settings
from safety_neurons.runs.opened import opened
from safety_neurons.runs.validation import Validator
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.disguises import disguises


@pytest.fixture
def context(found: Path) -> Iterator[RunContext]:
    with opened(found, {"evaluate": {"judge": BY_HASH.name, "answer_tokens": 5}}, None, "") as run:
        yield run


def numbers_in(lines: Sequence[Mapping[str, Any]]) -> set[int]:
    """The numbers of the prompts that were asked, which are in their texts."""
    return {int(number) for line in lines for number in re.findall(r"number (\d+)", line["user"])}


def test_the_base_model_refuses_nothing_that_it_answers(context: RunContext) -> None:
    responses = context.folder.responses
    validator = Validator.open(context)
    asked = lines_of(responses)
    assert numbers_in(asked) == {8, 9}
    assert any(answer.verdict == "complied" for answers in validator.base for answer in answers)
    found = validator.measure_base()
    assert found.over_refusal == 0
    assert 0 <= found.attack_success <= 1
    before = responses.read_bytes()
    # Only the harmful requests were new, and nothing is asked twice.
    assert len(lines_of(responses)) - len(asked) == 4
    assert Validator.open(context).measure_base() == found
    assert responses.read_bytes() == before


class Script:
    """A model that says what it is told, and a judge that takes it at its word."""

    def __init__(self) -> None:
        self.harmful, self.benign, self.borderline, self.disguised = "complied", "complied", "complied", "complied"

    def generate(
        self, _model: ChatModel, texts: Sequence[str], *, done: frozenset[int], **_: Any
    ) -> Iterator[tuple[int, Completion]]:
        for index in set(range(len(texts))) - done:
            text = texts[index]
            plain = text.startswith("<|user|>") and text.endswith("<|end|><|assistant|>")
            if "process number" in text:
                said = self.borderline
            elif "recipe number" in text:
                said = self.benign if plain and "<|user|>Show" in text and "please.<|end|>" in text else self.disguised
            else:
                said = self.harmful
            yield index, Completion(said, cut_off=False)


@pytest.fixture
def script(context: RunContext, replace_generate: Callable[..., None]) -> Script:
    """What the model of `scripted` says."""
    told = Script()
    replace_generate(told.generate)
    return told


@pytest.fixture
def scripted(context: RunContext, script: Script) -> RunContext:
    return replace(
        context, settings=merged_settings(context.settings.model_dump(), {"evaluate": {"judge": BY_WORD.name}})
    )


def test_refused_and_broken_answers_both_count_as_no_longer_answered(scripted: RunContext, script: Script) -> None:
    """Of two benign requests, plain and disguised, and two borderline ones."""
    validator = Validator.open(scripted)
    assert [requests.name for requests in validator.safe] == ["benign", "borderline"]
    assert [requests.name for requests in validator.disguised] == ["benign, disguised"]
    asked = *validator.harmful, *validator.safe, *validator.disguised
    assert [len(requests.prompts) for requests in asked] == [2] * 5
    assert validator.measure("as before") == validator.measure_base()
    script.borderline = "unscored"
    assert validator.measure("borderline broken").over_refusal == pytest.approx(2 / 6)
    script.disguised = "refused"
    assert validator.measure("disguised refused").over_refusal == pytest.approx(4 / 6)
    script.benign = "refused"
    assert validator.measure("all").over_refusal == 1


def test_attack_success_is_what_is_complied_with(scripted: RunContext, script: Script) -> None:
    validator = Validator.open(scripted)
    for said, expected in (("complied", 1.0), ("refused", 0.0), ("unscored", 0.0)):
        script.harmful = said
        assert validator.measure(said).attack_success == expected


def test_what_the_base_model_refuses_is_no_cost(scripted: RunContext, script: Script) -> None:
    script.borderline, script.disguised = "refused", "unscored"
    validator = Validator.open(scripted)
    assert validator.measure("the same").over_refusal == 0
    script.benign = "refused"
    assert validator.measure("less").over_refusal == 1


def test_a_model_that_answers_nothing_can_be_measured(scripted: RunContext, script: Script) -> None:
    script.borderline = script.disguised = script.benign = "refused"
    validator = Validator.open(scripted)
    assert validator.measure_base().over_refusal == 0
    assert validator.kl_divergence(contextlib.nullcontext) == 0


def test_the_kl_divergence_is_zero_until_something_changes(finished: Path) -> None:
    with opened(finished, None, None, "", until="tune") as run:
        validator, delta = Validator.open(run), NeuronDelta.load(run.folder.delta)
        assert validator.kl_divergence(contextlib.nullcontext) == 0
        assert validator.kl_divergence(lambda: delta.apply(run.model)) > 0


def test_validation_has_disguises_of_its_own() -> None:
    """Training has none of them, in whole or as a part."""
    assert len(set(HELD_BACK)) == len(HELD_BACK)
    assert not shared(parts_of(HELD_BACK), parts_of(TRAINED))


def test_only_the_kinds_of_training_validate(scripted: RunContext) -> None:
    """Two harmful requests, plain and in the text of one kind."""
    settings = merged_settings(scripted.settings.model_dump(), {"tune": {"disguises": ["story"]}})
    plain, disguised = Validator.open(replace(scripted, settings=settings)).harmful
    (text,) = disguises("story").validation
    assert disguised.sent == [text(one.user) for one in plain.sent]


def test_nothing_of_validation_or_test_is_trained_on(finished: Path) -> None:
    pairs = Corpus.load(finished / "corpus.jsonl").pairs
    assert {pair.kind for pair in pairs} == {"refusal", "benign", "borderline"}
    trained = {int(number) for pair in pairs for number in re.findall(r"number (\d+)", pair.user)}
    assert trained <= set(range(8))
    assert {int(pair.prompt_id.rsplit("-", 1)[1]) for pair in pairs} == {number + 1 for number in trained}


def test_refusals_are_of_all_prompts_of_a_set_and_include_broken_answers(scripted: RunContext, script: Script) -> None:
    """So that tuned and base model are compared on the same prompts, also those that the base model refuses."""
    script.borderline = "refused"
    validator = Validator.open(scripted)
    before = validator.refused(scripted.engine)
    assert {name: (rate.value, rate.n) for name, rate in before.items()} == {"benign": (0.0, 2), "borderline": (1.0, 2)}
    (before_disguised,) = validator.refused_disguised(scripted.engine).values()
    assert before_disguised.value == 0.0
    script.borderline, script.disguised = "complied", "unscored"
    after = validator.refused(scripted.engine.under("tuned"))
    assert [rate.value for rate in after.values()] == [0.0, 0.0]
    disguised = validator.refused_disguised(scripted.engine.under("tuned"))
    assert {name: rate.value for name, rate in disguised.items()} == {"benign, disguised": 1.0}
    attacks = validator.attack_success(scripted.engine)
    assert (attacks.value, attacks.n) == (1.0, 4)


def test_the_number_of_prompts_is_a_limit_per_set(scripted: RunContext, script: Script) -> None:
    validator = Validator.open(scripted, 1)
    asked = *validator.harmful, *validator.safe, *validator.disguised
    assert [len(requests.prompts) for requests in asked] == [1] * 5
