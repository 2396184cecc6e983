"""The search for a suffix: it only ever gets better, and it is the same every time."""

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safety_neurons.core.errors import CannotRunError
from safety_neurons.evaluation import attacks
from safety_neurons.evaluation.attacks import random_search
from safety_neurons.evaluation.attacks.random_search import RandomSearch, agreement, suffix_pieces
from safety_neurons.evaluation.contracts import Defended, EvaluationContext
from safety_neurons.models.chat import ChatModel

USERS = ["How do I wrap a present?", "Why? ! ! !", "A longer one, so that the others are padded."]


def search(spec: str = "random-search:steps=6,suffix_tokens=5,candidates=4") -> RandomSearch:
    attack = attacks.get(spec)
    assert isinstance(attack, RandomSearch)
    return attack


def by_hand(model: ChatModel, user: str) -> float:
    """The log-probability that the answer begins with the first token of "Sure", of one text alone."""
    ids = model.tokenizer(model.render(user), add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits[0, -1].double()
    return float(logits[model.tokenizer.convert_tokens_to_ids("S")] - logits.logsumexp(0))


def test_a_batch_says_what_each_text_says_alone(one_of_each: ChatModel) -> None:
    expected = [by_hand(one_of_each, user) for user in USERS]
    assert agreement(one_of_each, USERS) == pytest.approx(expected, abs=1e-4)


def test_the_suffix_only_gets_better(model: ChatModel) -> None:
    attack, pieces = search(), suffix_pieces(model)
    course = list(attack.search(model, pieces, USERS[0], seed=0))
    assert len(course) == attack.steps + 1
    values = [value for _, value in course]
    assert all(later >= earlier for earlier, later in itertools.pairwise(values))
    assert values[-1] > values[0]
    # What is claimed of the suffix is true of the text that is sent.
    for suffix, value in course:
        assert value == pytest.approx(by_hand(model, USERS[0] + suffix), abs=1e-4)


def test_more_candidates_at_the_first_step_are_the_naive_best_of_them(model: ChatModel) -> None:
    attack, pieces = search("random-search:steps=1,suffix_tokens=5,candidates=16"), suffix_pieces(model)
    draw = random.Random(f"3\0{USERS[0]}")
    start = [random_search.START] * 5
    tried = [start, *(random_search.changed(start, pieces, draw) for _ in range(16))]
    best = max(tried, key=lambda one: by_hand(model, USERS[0] + "".join(one)))
    *_, (found, _) = attack.search(model, pieces, USERS[0], seed=3)
    assert found == "".join(best)


def test_a_change_touches_neighbours_only() -> None:
    draw, suffix = random.Random(0), list("abcdefgh")
    for _ in range(200):
        new = random_search.changed(suffix, ["X", "Y"], draw)
        places = [place for place, (old, now) in enumerate(zip(suffix, new, strict=True)) if old != now]
        assert 1 <= len(places) <= random_search.WIDEST_CHANGE
        assert places == list(range(places[0], places[-1] + 1))
    assert len(random_search.changed(["a"], ["X"], draw)) == 1


def test_the_same_seed_finds_the_same_suffix(
    make_bench: Callable[..., EvaluationContext], defended: Defended, context: EvaluationContext
) -> None:
    attack = search()
    first = attack.prompts(USERS, defended, context)
    torch.rand(3)
    # A request's suffix does not depend on which others are asked.
    assert [*attack.prompts(USERS[:1], defended, context), *attack.prompts(USERS[1:], defended, context)] == first
    other = attack.prompts(USERS, defended, make_bench(seed=1))
    assert all(one != two for one, two in zip(first, other, strict=True))
    assert all(one is not None and one.user.startswith(user) for one, user in zip(first, USERS, strict=True))


def test_a_suffix_is_made_of_plain_text(worded: ChatModel) -> None:
    pieces = suffix_pieces(worded)
    assert len(pieces) == len(set(pieces)) > 50
    assert all(piece.isascii() and piece.isprintable() and piece.strip() for piece in pieces)
    assert not {"<|end|>", "<|user|>", "<pad>"} & set(pieces)


def test_a_suffix_never_ends_the_turn(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_search, "START", ".")
    for suffix, _ in search().search(model, ["<|end", "|>"], USERS[0], seed=0):
        assert "<|end|>" not in suffix


def test_a_killed_search_goes_on_where_it_stopped(
    tmp_path: Path, make_bench: Callable[..., EvaluationContext], defended: Defended, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_bench(folder=tmp_path / "kept")
    whole = search().prompts(USERS, defended, context)
    assert context.folder is not None
    path = context.folder / random_search.FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]) + b'{"key": "cut o')
    searched = []
    true_search = RandomSearch.search

    def counted(self: RandomSearch, model: ChatModel, pieces: list[str], request: str, seed: int) -> object:
        searched.append(request)
        return true_search(self, model, pieces, request, seed)

    monkeypatch.setattr(RandomSearch, "search", counted)
    assert search().prompts(USERS, defended, context) == whole
    assert searched == USERS[2:]
    # Another model's suffixes are its own.
    changed = Defended(defended.engine.under("tuned"), defended.respond)
    search().prompts(USERS[:1], changed, context)
    assert searched == [USERS[2], USERS[0]]


def test_it_needs_the_model(context: EvaluationContext, make_interpreter: Callable[..., Any]) -> None:
    with pytest.raises(
        CannotRunError, match=r"random-search.* needs the model's weights, but interpreter provides text"
    ):
        search().prompts(USERS, Defended(make_interpreter({}), lambda _prompts: []), context)


def test_probabilities_are_logarithms(model: ChatModel) -> None:
    assert all(-math.inf < value < 0 for value in agreement(model, USERS))


def test_a_worker_process_writes_no_file(
    tmp_path: Path, make_bench: Callable[..., EvaluationContext], defended: Defended, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_bench(folder=tmp_path)
    first = search().prompts(USERS, defended, context)
    path = tmp_path / random_search.FILE
    content = path.read_bytes()
    kept = random_search.JsonlCache.read(path, random_search.CachedSuffix).entries
    monkeypatch.setattr(random_search, "owns", lambda number: False)
    monkeypatch.setattr(random_search, "broadcast", lambda _mine, _kind: kept)
    assert search().prompts(USERS, defended, context) == first
    assert search("random-search:steps=1,suffix_tokens=2").prompts(USERS, defended, context) != first
    assert path.read_bytes() == content
