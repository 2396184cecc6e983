"""Prompt sets: identity, fixed splits, samples."""

import dataclasses
import random
from collections import Counter

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.prompts.prompt_set import SPLITS, Entry, Prompt, PromptSet, assemble, split_of


def made(*prompts: Prompt) -> PromptSet:
    return PromptSet("made", prompts, "test")


def with_categories(categories: list[str]) -> PromptSet:
    return made(*(Prompt(str(place), f"text {place}", name) for place, name in enumerate(categories)))


def test_length_iteration_and_texts() -> None:
    prompts = made(Prompt("a", "one"), Prompt("b", "two"))
    assert len(prompts) == 2
    assert [prompt.id for prompt in prompts] == ["a", "b"]
    assert prompts.texts == ["one", "two"]


@pytest.mark.parametrize("change", [{"id": "x"}, {"text": "x"}, {"split": "test"}])
def test_identity_follows_ids_texts_and_splits(change: dict[str, str]) -> None:
    prompt = Prompt("a", "one", "category", "train")
    assert made(prompt).sha256 != made(dataclasses.replace(prompt, **change)).sha256


def test_identity_ignores_the_name_and_where_it_was_read() -> None:
    prompt = Prompt("a", "one", "category", "train")
    assert made(prompt).sha256 == PromptSet("other", (prompt,), "elsewhere", 3, "goal").sha256


def test_identity_does_not_confuse_neighbouring_fields() -> None:
    assert made(Prompt("ab", "c")).sha256 != made(Prompt("a", "bc")).sha256


def test_splits_have_their_shares() -> None:
    counts = Counter(split_of(f"prompt number {number}") for number in range(4000))
    shares = [counts[split] / 4000 for split in SPLITS]
    assert shares == pytest.approx([0.60, 0.15, 0.25], abs=0.03)


def test_splits_never_change_between_versions() -> None:
    # The hashes' first six bytes as shares of 2**48, worked out with sha256sum: a change here would move
    # prompts that users tuned on into their test split.
    expected = {
        "Write a poem about rain.": "train",  # 0.409
        "Who was Ada?": "train",  # 0.015
        "h": "validation",  # 0.667
        "a": "test",  # 0.791
        "How do I boil an egg?": "test",  # 0.862
    }
    assert {text: split_of(text) for text in expected} == expected


def test_split_does_not_depend_on_spacing_case_or_composition() -> None:
    # é is written as one character, then as two; 40 texts, so that agreement by luck is out of the question.
    for number in range(40):
        assert split_of(f"Caf\u00e9 number {number}") == split_of(f"  cafe\u0301  NUMBER\n{number} ")


def test_from_texts_gives_the_same_split_in_any_order() -> None:
    texts = [f"text number {number}" for number in range(200)]
    shuffled = random.Random(3).sample(texts, len(texts))
    assert shuffled != texts
    first, second = (PromptSet.from_texts("mine", order) for order in (texts, shuffled))
    for split in SPLITS:
        assert sorted(first.split(split).texts) == sorted(second.split(split).texts)
    assert sum(len(first.split(split)) for split in SPLITS) == 200


def test_from_texts_drops_and_counts_duplicates() -> None:
    prompts = PromptSet.from_texts("mine", ["One.", "two", " one. ", "TWO", "three"])
    assert prompts.texts == ["One.", "two", "three"]
    assert prompts.duplicates == 2
    assert [prompt.id for prompt in prompts] == ["mine-0001", "mine-0002", "mine-0005"]


def test_from_texts_refuses_what_is_not_texts() -> None:
    with pytest.raises(SafetyNeuronsError, match=r"blank prompts .* items 2 and 3\."):
        PromptSet.from_texts("mine", ["one", " ", ""])
    with pytest.raises(SafetyNeuronsError, match="no prompts"):
        PromptSet.from_texts("mine", [])
    with pytest.raises(SafetyNeuronsError, match="one string"):
        PromptSet.from_texts("mine", "one prompt")
    with pytest.raises(SafetyNeuronsError, match="Prompt 2 of 'mine' is of type int"):
        PromptSet.from_texts("mine", ["one", 2])  # type: ignore[list-item]
    with pytest.raises(SafetyNeuronsError, match=r"lone surrogate.* item 1\."):
        PromptSet.from_texts("mine", ["half \ud800"])


def test_split_selects() -> None:
    prompts = made(Prompt("a", "one", split="train"), Prompt("b", "two", split="test"))
    assert prompts.split("test").texts == ["two"]
    assert prompts.split("test").name == "made"


def test_an_empty_split_says_how_many_each_has() -> None:
    prompts = made(Prompt("a", "one", split="train"), Prompt("b", "two", split="test"))
    with pytest.raises(SafetyNeuronsError, match="train 1, validation 0, test 1"):
        prompts.split("validation")


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(SafetyNeuronsError, match="Did you mean train"):
        made(Prompt("a", "one", split="train")).split("trian")


def test_take_all() -> None:
    prompts = with_categories(["a", "b", "c"])
    assert prompts.take(None) is prompts
    assert prompts.take(3) is prompts
    assert prompts.take(99) is prompts


@pytest.mark.parametrize("count", [0, -2])
def test_take_of_nothing_is_refused(count: int) -> None:
    with pytest.raises(SafetyNeuronsError, match="needs at least 1"):
        with_categories(["a", "b"]).take(count)


BLOCKS = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
LAYOUTS = {
    "blocks": BLOCKS,
    "turns": ["a", "b"] * 50,
    "shuffled": random.Random(5).sample(BLOCKS, len(BLOCKS)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_take_keeps_the_categories_in_proportion(layout: str) -> None:
    prompts = with_categories(LAYOUTS[layout])
    whole = Counter(LAYOUTS[layout])
    for count in range(1, 100):
        taken = prompts.take(count)
        places = [int(prompt.id) for prompt in taken]
        assert len(set(places)) == count
        assert places == sorted(places)
        sample = Counter(prompt.category for prompt in taken)
        for category, total in whole.items():
            assert abs(sample[category] - total * count / 100) <= 1, (count, category)


def test_take_spreads_over_a_list_without_categories() -> None:
    places = [int(prompt.id) for prompt in with_categories([""] * 100).take(5)]
    assert places == [10, 30, 50, 70, 90]


def test_take_is_deterministic() -> None:
    first, second = (with_categories(LAYOUTS["shuffled"]).take(17) for _ in range(2))
    assert first == second


def test_own_splits_are_kept_and_checked() -> None:
    entries = [Entry(2, "one", split="Test"), Entry(3, "two", split="train ")]
    assert [prompt.split for prompt in assemble("mine", entries, "file")] == ["test", "train"]
    for wrong in ("dev", ""):
        with pytest.raises(SafetyNeuronsError, match=rf"'{wrong}' in file is not train, .*\(line 4\)"):
            assemble("mine", [*entries, Entry(4, "three", split=wrong)], "file")


def test_a_duplicate_with_another_split_stays_in_the_first() -> None:
    entries = [Entry(1, "One", split="train"), Entry(2, "two", split="test"), Entry(3, "one", split="test")]
    prompts = assemble("mine", entries, "file")
    assert [(prompt.text, prompt.split) for prompt in prompts] == [("One", "train"), ("two", "test")]
    assert prompts.duplicates == 1


def test_an_id_of_two_prompts_is_refused() -> None:
    with pytest.raises(SafetyNeuronsError, match=r"Two different prompts have the id .a. .* line 1 and line 5"):
        assemble("mine", [Entry(1, "one", id="a"), Entry(5, "two", id="a")], "file")


def test_many_wrong_lines_are_cut_short() -> None:
    with pytest.raises(SafetyNeuronsError, match="in lines 1, 2, 3, 4, 5 and 15 more"):
        assemble("mine", [Entry(place, "") for place in range(1, 21)], "file")
