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
from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.generate import Completion
from safety_neurons.models.load import load
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.corpus import _requests, corpus_of
from safety_neurons.runs.folder import overridden
from safety_neurons.runs.opened import opened
from safety_neurons.runs.pipeline import run
from safety_neurons.settings import PROFILES, Profile
from safety_neurons.tuning.batches import rendered
from safety_neurons.tuning.corpus import Corpus, Pair
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.disguises import PLAIN, Disguise, renderable


@pytest.fixture
def context(finished: Path) -> Iterator[RunContext]:
    with opened(finished, None, None, "") as run:
        yield run


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
        # Sent as it is or in disguise, it is in there.
        assert {text for text in texts if any(text in user for user in users)} == set(expected)
        if kind != "benign":
            assert {user for user in users if user in texts} == set(expected)
    assert {pair.kind for pair in pairs} == {"refusal", "benign", "borderline"}


def _around(user: str) -> str:
    """What is sent, without the request."""
    for text in TEXTS.values():
        for number in range(8):
            user = user.replace(text.format(number), "")
    return user


def test_counterparts_are_sent_in_the_same_disguise(whole: Path) -> None:
    pairs = Corpus.load(whole / "corpus.jsonl").pairs
    by_match: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_match.setdefault(pair.match, []).append(pair)
    couples = {match: found for match, found in by_match.items() if len(found) == 2}
    assert couples
    for match, found in couples.items():
        unsafe, safe = found
        assert (unsafe.kind, safe.kind) in (("refusal", "benign"), ("refusal", "borderline"))
        assert unsafe.before == safe.before
        assert all(int(pair.prompt_id.rsplit("-", 1)[1]) == int(match.split("-")[1]) for pair in found)
        around = [_around(pair.user) for pair in found]
        assert around[0] == around[1]
    assert any(pair.before for pair in pairs)
    assert any(pair.user == text for pair in pairs for text in [TEXTS["harmful"].format(number) for number in range(8)])


def test_contrast_and_borderline_requests_are_never_disguised(whole: Path) -> None:
    plain = {text.format(number) for text in TEXTS.values() for number in range(8)}
    of_set: dict[str, list[bool]] = {}
    for pair in Corpus.load(whole / "corpus.jsonl").pairs:
        name = next(name for name, text in TEXTS.items() if text.partition("{")[0] in pair.user)
        of_set.setdefault(name, []).append(pair.user in plain and not pair.prefill and not pair.before)
    assert all(of_set["contrast"] + of_set["borderline"])
    assert not all(of_set["harmful"])
    assert not all(of_set["benign"])


def test_a_refusal_follows_the_opening_of_an_answer(whole: Path) -> None:
    begun = [pair for pair in Corpus.load(whole / "corpus.jsonl").pairs if pair.kind == "refusal" and pair.prefill]
    assert begun
    for pair in begun:
        assert pair.prefill[-1].isspace() is not pair.response[0].isspace()


def test_prompts_with_a_counterpart_are_preferred(context: RunContext) -> None:
    settings = context.settings.tune.model_copy(update={"refusals": 3, "benign": 4, "variants": 2})
    harmful, benign = _requests(context, settings, settings.disguises, "harmful", "benign")
    numbers = [{request.prompt.id[-1] for request in side} for side in (harmful, benign)]
    assert len(numbers[1]) == 4
    assert numbers[0] < numbers[1]
    # As it is and in two disguises.
    assert sum(bool(request.match) for request in benign) == 3 * 3
    for side, size in ((harmful, 3), (benign, 4)):
        assert len(side) == 3 * size
        forms: dict[str, set[Disguise]] = {request.prompt.id: set() for request in side}
        for request in side:
            forms[request.prompt.id].add(request.disguise)
        assert all(PLAIN in found and len(found) == 3 for found in forms.values())


def test_a_template_without_earlier_turns_does_without_that_kind(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = type(context.model).render_conversation

    def render(model: ChatModel, conversation: Conversation) -> str:
        if len(conversation.turns) > 1:
            raise SafetyNeuronsError("The template knows one turn.")
        return original(model, conversation)

    monkeypatch.setattr(type(context.model), "render_conversation", render)
    assert renderable(context.model, ["turns", "story"]) == ("story",)
    corpus = corpus_of(context)
    assert corpus.pairs
    assert not any(pair.before for pair in corpus.pairs)


def test_corpus_knows_which_answers_were_cut_off(whole: Path, given: dict[str, Any]) -> None:
    model = load(given["model"], device="cpu", dtype="float32")
    pairs = [pair for pair in Corpus.load(whole / "corpus.jsonl").pairs if pair.kind != "refusal"]
    assert pairs
    for pair in pairs:
        inputs = model.encode([rendered(model, pair)])
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
    given["tune"] |= {"largest_share": 0.5, "samples": 2, "contrast": 0, "select": False}
    run(tmp_path / "run", given, until="tune")
    refusals = [pair for pair in Corpus.load(tmp_path / "run" / "corpus.jsonl").pairs if pair.kind == "refusal"]
    assert [pair.response.strip() for pair in refusals] == ["No."] * 2
    assert len({pair.prompt_id for pair in refusals}) == 1
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
