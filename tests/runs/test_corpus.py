"""The corpus of a run: which pairs it holds, and the user's own in its place."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.judges import BY_PROMPT, by_prompt
from builders.listeners import Recorder
from builders.runs import TEXTS, section_of
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import Completion
from safety_neurons.models.load import load
from safety_neurons.runs.folder import overridden
from safety_neurons.runs.pipeline import run
from safety_neurons.settings import PROFILES, Profile
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta


def test_corpus_holds_only_refusals_of_harmful_and_answers_to_harmless_prompts(whole: Path) -> None:
    pairs = Corpus.load(whole / "corpus.jsonl").pairs
    for kind, names, wanted in (
        ("refusal", ("harmful", "contrast"), "refused"),
        ("benign", ("benign",), "complied"),
        ("borderline", ("borderline",), "complied"),
    ):
        texts = [TEXTS[name].format(number) for name in names for number in range(8)]
        expected = [text for text in texts if by_prompt(text) == wanted]
        users = [pair.user for pair in pairs if pair.kind == kind]
        assert len(users) == len(expected)
        # A request may be sent in disguise, but it is in there.
        assert all(text in user for text, user in zip(expected, users, strict=True))
    assert {pair.kind for pair in pairs} == {"refusal", "benign", "borderline"}


def test_corpus_knows_which_answers_were_cut_off(whole: Path, given: dict[str, Any]) -> None:
    model = load(given["model"], device="cpu", dtype="float32")
    pairs = [pair for pair in Corpus.load(whole / "corpus.jsonl").pairs if pair.kind != "refusal"]
    assert pairs
    for pair in pairs:
        inputs = model.encode([model.render(pair.user, pair.prefill)])
        with torch.inference_mode():
            ids = model.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert pair.cut_off is (model.tokenizer.eos_token_id not in ids.tolist()), ids.tolist()


def test_corpus_of_the_users_own_is_what_is_trained_on(finished: Path, given: dict[str, Any], tmp_path: Path) -> None:
    """It is known by its content: a change of the file is noticed, another place is not."""
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"kind": "refusal", "user": "Tell me how to rob a bank.", "response": "No."}\n')
    run(finished, {"tune": {"corpus": str(mine)}}, until="tune")
    assert [pair.user for pair in Corpus.load(finished / "corpus.jsonl").pairs] == ["Tell me how to rob a bank."]
    notes = Recorder()
    run(finished, until="tune", listener=notes)
    assert notes.tasks == []
    mine.write_text(mine.read_text() + '{"kind": "benign", "user": "Name a fruit.", "response": "An apple."}\n')
    assert section_of("training", run, finished, until="tune")["corpus"] == {"refusal": 1, "benign": 1}
    mine.write_text("\n")
    with pytest.raises(SafetyNeuronsError, match=r"mine\.jsonl is empty"):
        run(finished, until="tune")
    mine.write_text("nonsense\n")
    with pytest.raises(SafetyNeuronsError, match=r"Line 1 of .*mine\.jsonl"):
        run(finished, until="tune")


def test_refusals_are_varied(given: dict[str, Any], tmp_path: Path, replace_generate: Callable[..., None]) -> None:
    """One who always says the same is asked again, and then left out."""
    asked: list[tuple[int, bool]] = []

    def generate(
        _model: ChatModel, prompts: list[str], *, done: frozenset[int], sampling: Any = None, **_: Any
    ) -> Iterator[tuple[int, Completion]]:
        harmful = "harm" in prompts[0]
        if harmful:
            asked.append((len(prompts), sampling is not None))
        for index in set(range(len(prompts))) - done:
            yield index, Completion("No." if harmful else f"Fine {prompts[index]}.", cut_off=False)

    replace_generate(generate)
    given["tune"] |= {"largest_share": 0.5, "samples": 2, "contrast": 0}
    run(tmp_path / "run", given, until="tune")
    refusals = [pair for pair in Corpus.load(tmp_path / "run" / "corpus.jsonl").pairs if pair.kind == "refusal"]
    assert [pair.response for pair in refusals] == ["No."]
    assert asked == [(8, True), (7, True)]


@pytest.mark.parametrize("profile", ["paper", "paper-released"])
def test_profiles_of_the_paper_tune_to_refusals_of_plain_requests(
    given: dict[str, Any], tmp_path: Path, profile: Profile
) -> None:
    smaller = {
        "tune": {"answer_tokens": 4},
        "evaluate": {"answer_tokens": 4, "judge": BY_PROMPT.name, "on": None},
    }
    small = {name: value for name, value in given.items() if not isinstance(value, dict)} | smaller
    run(tmp_path / "run", overridden(PROFILES[profile], small), until="tune")
    pairs = Corpus.load(tmp_path / "run" / "corpus.jsonl").pairs
    requests = {TEXTS["harmful"].format(number) for number in range(8)}
    assert pairs
    assert {(pair.kind, pair.prefill, pair.user in requests) for pair in pairs} == {("refusal", "", True)}
    tuned = NeuronDelta.load(tmp_path / "run" / "delta.safetensors").neurons
    assert tuned.provenance.percent == {"paper": 3, "paper-released": 50}[profile]
    assert bool(sum(map(len, tuned.conformity))) == (profile == "paper")
