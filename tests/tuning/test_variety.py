"""No sentence stands in more than its share of the answers, and as few as possible are left out for it."""

import random
from collections import Counter

import pytest

from safety_neurons.tuning.corpus import sentences, varied

USUAL = "I'm sorry, but I can't assist with that."


def counts(candidates: list[list[str]], share: float) -> tuple[Counter[str], int]:
    chosen = varied(candidates, share)
    taken = [answers[place] for answers, place in zip(candidates, chosen, strict=True) if place is not None]
    return Counter(one for answer in taken for one in sentences(answer)), len(taken)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_no_sentence_is_above_its_share(share: float) -> None:
    draw = random.Random(0)
    stock = [USUAL, "No.", "I cannot do this. Ask for something else.", *(f"Not number {n}." for n in range(12))]
    candidates = [draw.choices(stock, weights=range(len(stock), 0, -1), k=draw.randrange(4)) for _ in range(80)]
    said, taken = counts(candidates, share)
    assert taken > 10
    assert max(said.values()) <= max(1, share * taken)


def test_the_first_candidate_is_taken_while_it_is_rare() -> None:
    assert varied([["a.", "b."], ["c."], [], ["d.", "a."]], 1.0) == [0, 0, None, 0]


def test_a_prompt_whose_first_answer_is_common_takes_its_next() -> None:
    candidates = [[USUAL, f"Other {number}."] for number in range(10)]
    assert varied(candidates, 0.2) == [0, 0, *[1] * 8]


def test_the_share_is_of_what_is_left() -> None:
    """Ten prompts and one sentence: two could be taken of ten, but then they would be all there is."""
    said, taken = counts([[USUAL]] * 10, 0.2)
    assert (taken, said) == (1, Counter(sentences(USUAL)))


def test_sentences_are_compared_without_case_spacing_and_marks() -> None:
    assert sentences("I  can't. Go away!\nI CAN'T") == {"i can't", "go away"}
    assert sentences(" ... ") == set()
