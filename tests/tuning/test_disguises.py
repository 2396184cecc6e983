"""Disguises: what is sent, which requests get which, and that the texts fit their purpose."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from builders.disguises import HELD_BACK, MARK, TRAINED
from safety_neurons.models.template import Turn
from safety_neurons.tuning.config import DISGUISE_KINDS, DisguiseKind
from safety_neurons.tuning.disguises import PLAIN, Disguise, disguised, disguises, for_validation, in_turn


def kind_of(disguise: Disguise) -> DisguiseKind | None:
    return next((kind for kind in DISGUISE_KINDS if disguise in disguises(kind).train), None)


def test_the_request_is_filled_in_as_it_is() -> None:
    one = Disguise("Say: {request} {x}", 'You asked: "{request:2}', ("Hello.", "Hi, {request:1}"))
    sent = one("How {request} is \\1?")
    assert sent.user == "Say: How {request} is \\1? {x}"
    assert sent.prefill == 'You asked: "How {request}'
    assert sent.before == (Turn("user", "Hello."), Turn("assistant", "Hi, How"))
    assert PLAIN("Why?").user == "Why?"


@pytest.mark.parametrize("kind", DISGUISE_KINDS)
def test_a_kind_has_six_texts_and_two_that_are_held_back(kind: DisguiseKind) -> None:
    texts = disguises(kind)
    assert len(set(texts.train)) == len(texts.train) >= 6
    assert len({*texts.validation, *texts.test}) == 2
    for one in (*texts.train, *texts.validation, *texts.test):
        sent = one(MARK)
        assert sent.user.count(MARK) == 1
        assert one != replace(one, text="{request}", opening="", turns=())
        # The conversation before a user's turn ends with the assistant's.
        assert len(sent.before) % 2 == 0


def test_answers_are_begun_by_one_word_and_by_a_dozen() -> None:
    lengths = {len(one.opening.split()) for one in disguises("opening").train}
    assert min(lengths) == 1
    assert max(lengths) >= 8
    assert any("{request" in one.opening for one in disguises("opening").train)


def test_kinds_take_turns() -> None:
    chosen = in_turn(160, DISGUISE_KINDS)
    assert Counter(map(kind_of, chosen)) == dict.fromkeys(DISGUISE_KINDS, 20)
    assert set(in_turn(5, ())) == {PLAIN}


def test_another_start_gives_each_request_another_kind() -> None:
    first, second = in_turn(80, DISGUISE_KINDS), in_turn(80, DISGUISE_KINDS, 1)
    assert all(kind_of(one) != kind_of(other) for one, other in zip(first, second, strict=True))


def test_a_single_kind_takes_the_place_of_all_others_with_all_its_texts() -> None:
    chosen = in_turn(160, ["story"])
    assert set(chosen) == set(disguises("story").train)
    assert all(one != other for one, other in itertools.pairwise(chosen[:8]))


def test_a_kind_that_is_left_out_changes_its_own_requests_alone() -> None:
    kinds = [kind for kind in DISGUISE_KINDS if kind != "story"]
    before, after = in_turn(160, DISGUISE_KINDS), in_turn(160, kinds)
    changed = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    assert {kind_of(one) for one, _ in changed} == {"story"}
    assert len({kind_of(other) for _, other in changed}) > 4
    assert "story" not in {kind_of(other) for other in after}


def test_what_validates_is_neither_trained_on_nor_tested_with() -> None:
    chosen = for_validation(DISGUISE_KINDS)
    assert len(set(chosen)) == len(DISGUISE_KINDS)
    tested = [one for kind in DISGUISE_KINDS for one in disguises(kind).test]
    assert len({*chosen, *tested}) == len(HELD_BACK)
    assert not set(HELD_BACK) & set(TRAINED)


def test_requests_are_disguised_in_turn() -> None:
    one, other = for_validation(["story", "turns"])
    assert disguised(["a", "b", "c"], [one, other]) == [one("a"), other("b"), one("c")]
