"""Cached answers: the same as without a cache, never computed twice; a resumed run writes the same file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.engine import CachedAnswer, CachedEngine, InProcess, WrappedEngine, answers
from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.generate import Completion, Sampling

ASKED = [Conversation.of(text) for text in ("Hi", "Tell me about the sea", "Why?", "One more, please", "And a last")]


@dataclass(frozen=True)
class Watched(WrappedEngine[InProcess]):
    """An engine that notes what it is asked for, and is killed after so many answers."""

    kill_after: int | None = None
    asked: list[list[str]] = field(default_factory=list)
    missing: list[list[str]] = field(default_factory=list)

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        done: frozenset[int] = frozenset(),
    ) -> Iterator[tuple[int, Completion]]:
        said = [conversation.turns[-1].content for conversation in conversations]
        self.asked.append(said)
        self.missing.append([text for index, text in enumerate(said) if index not in done])
        found = self.engine.answer(conversations, max_new_tokens=max_new_tokens, sampling=sampling, done=done)
        for number, item in enumerate(found):
            if number == self.kill_after:
                raise KeyboardInterrupt
            yield item


@pytest.fixture
def engine(model: ChatModel) -> Watched:
    return Watched(InProcess(model, batch_size=2))


def kept(engine: Watched, path: Path) -> CachedEngine:
    """As a process that begins anew has it."""
    return CachedEngine(engine, JsonlCache.read(path, CachedAnswer))


@pytest.mark.parametrize("sampling", [None, Sampling(1.5, 3)])
def test_kept_answers_are_the_same_and_are_not_computed_again(
    sampling: Sampling | None, engine: Watched, tmp_path: Path
) -> None:
    expected = answers(engine.engine, ASKED, max_new_tokens=6, sampling=sampling)
    for _ in range(2):
        found = answers(kept(engine, tmp_path / "answers"), ASKED, max_new_tokens=6, sampling=sampling)
        assert found == expected
    assert len(engine.asked) == 1


@pytest.mark.parametrize("sampling", [None, Sampling(1.5, 3)])
@pytest.mark.parametrize("kill_after", [0, 1, 2, 3, 4])
def test_a_killed_run_that_goes_on_writes_the_same_file(
    kill_after: int, sampling: Sampling | None, engine: Watched, tmp_path: Path
) -> None:
    undisturbed, path = tmp_path / "undisturbed", tmp_path / "killed"
    expected = answers(kept(engine, undisturbed), ASKED, max_new_tokens=6, sampling=sampling)
    with pytest.raises(KeyboardInterrupt):
        answers(kept(replace(engine, kill_after=kill_after), path), ASKED, max_new_tokens=6, sampling=sampling)
    if kill_after:
        assert len(path.read_bytes().splitlines()) == kill_after
        # It was killed while it wrote, too.
        with path.open("ab") as file:
            file.write(b'{"key": "ab')
    assert answers(kept(engine, path), ASKED, max_new_tokens=6, sampling=sampling) == expected
    assert path.read_bytes() == undisturbed.read_bytes()


def test_what_is_asked_twice_is_computed_once(engine: Watched, tmp_path: Path) -> None:
    twice = [ASKED[0], ASKED[1], ASKED[0], ASKED[0]]
    found = answers(kept(engine, tmp_path / "answers"), twice, max_new_tokens=6)
    assert found[0] == found[2] == found[3] != found[1]
    assert engine.asked == [["Hi", "Tell me about the sea"]]
    assert len((tmp_path / "answers").read_text().splitlines()) == 2


def test_who_shares_a_batch_does_not_depend_on_what_is_kept(engine: Watched, tmp_path: Path) -> None:
    path = tmp_path / "answers"
    answers(kept(engine, path), ASKED[1:3], max_new_tokens=6)
    answers(kept(engine, path), ASKED, max_new_tokens=6)
    texts = [conversation.turns[-1].content for conversation in ASKED]
    assert engine.asked == [texts[1:3], texts]
    assert engine.missing == [texts[1:3], [texts[0], *texts[3:]]]


def test_answers_are_those_of_one_question_alone(engine: Watched, model: ChatModel, tmp_path: Path) -> None:
    """Other changes, lengths, samplings, prefills and system prompts have answers of their own."""
    engines = [kept(engine, tmp_path / "answers")]
    engines.append(engines[0].under("guard"))
    asked = [ASKED[0], Conversation.of("Hi", prefill="Sure,"), Conversation.of("Hi", system="Be kind.")]
    settings = [(6, None), (3, None), (6, Sampling(1.5, 1)), (6, Sampling(1.5, 2)), (6, Sampling(0.5, 1))]
    for _ in range(2):
        for one in engines:
            for tokens, sampling in settings:
                answers(one, asked, max_new_tokens=tokens, sampling=sampling)
    assert len(engine.asked) == len(engines) * len(settings)
    lines = (tmp_path / "answers").read_text().splitlines()
    assert len(lines) == len({line.split('"text"')[0] for line in lines}) == 3 * len(engine.asked)


def test_what_is_done_is_neither_computed_nor_yielded(engine: Watched, tmp_path: Path) -> None:
    """Unless another place asks the same."""
    asked = [*ASKED[:3], ASKED[1]]
    found = dict(kept(engine, tmp_path / "answers").answer(asked, max_new_tokens=6, done=frozenset({0, 1})))
    assert list(found) == [2, 3]
    assert engine.missing == [["Tell me about the sea", "Why?"]]


def test_progress_is_told_for_each_answer(engine: Watched, tmp_path: Path) -> None:
    heard: list[int] = []
    answers(
        CachedEngine(engine, JsonlCache.read(tmp_path / "answers", CachedAnswer), heard.append), ASKED, max_new_tokens=4
    )
    assert [count for count in heard if count] == [1] * len(ASKED)
