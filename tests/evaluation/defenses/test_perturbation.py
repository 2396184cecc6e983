"""Random changes of texts: how much they change, and that they follow from their seed; and quotations."""

import random

import pytest

from safety_neurons.evaluation.defenses.perturbation import (
    ALPHABET,
    PERTURBATIONS,
    Perturbation,
    dropped,
    inserted,
    patched,
    swapped,
    words,
)
from safety_neurons.evaluation.defenses.prompting import seeded

TEXTS = [
    "",
    "a",
    "Tell me how to harm a person.",
    "日本語で 説明してください 🎁",
    "x" * 5000,
    "\n \t ",
    'It\'s 10%; "so"?',
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_as_many_characters_change_as_the_share_says(text: str, share: float) -> None:
    many = int(len(text) * share)
    for seed in range(5):
        changed = swapped(text, share, random.Random(seed))
        assert len(changed) == len(text)
        assert sum(one != other for one, other in zip(changed, text, strict=True)) <= many
        assert len(inserted(text, share, random.Random(seed))) == len(text) + many
        places = [
            place
            for place, (one, other) in enumerate(zip(patched(text, share, random.Random(seed)), text, strict=True))
            if one != other
        ]
        assert not places or places[-1] - places[0] < many


def test_what_was_inserted_leaves_the_text() -> None:
    rest = iter(inserted("abcdefghij", 0.5, random.Random(3)))
    assert all(character in rest for character in "abcdefghij")


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_characters_come_from_the_alphabet(kind: Perturbation) -> None:
    assert set(PERTURBATIONS[kind]("é" * 300, 1.0, random.Random(0))) <= {*ALPHABET, "é"}
    assert PERTURBATIONS[kind]("é" * 300, 0.0, random.Random(0)) == "é" * 300


def test_random_numbers_follow_from_their_parts() -> None:
    assert seeded(0, "a", "text").random() == seeded(0, "a", "text").random()
    others = [seeded(1, "a", "text"), seeded(0, "b", "text"), seeded(0, "a", "texts"), seeded(0, "a", "\ud800")]
    assert len({one.random() for one in others} | {seeded(0, "a", "text").random()}) == 5


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_words_are_the_text_in_pieces_and_a_share_of_them_is_dropped(text: str, share: float) -> None:
    pieces = words(text)
    assert "".join(pieces) == text
    left = dropped(pieces, share, random.Random(0))
    rest = iter(text)
    assert all(character in rest for character in left)
    numbered = [f"{place}," for place in range(len(pieces))]
    assert dropped(numbered, share, random.Random(0)).count(",") == len(pieces) - int(len(pieces) * share)


def test_a_script_without_spaces_has_words_too() -> None:
    assert words("お願い, now") == ["お", "願", "い", ",", " now"]
