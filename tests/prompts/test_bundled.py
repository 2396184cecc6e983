"""What the bundled sets promise."""

from collections import Counter

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from safety_neurons.prompts import PromptSet, load_prompts, named_sets
from safety_neurons.prompts.prompt_set import SPLITS, normalized

BUNDLED = ("harmful", "benign", "borderline", "contrast")
ALIKE = 0.6


@pytest.fixture(scope="module", name="sets")
def all_sets() -> dict[str, PromptSet]:
    return {name: load_prompts(name) for name in BUNDLED}


def test_sizes(sets: dict[str, PromptSet]) -> None:
    for name, prompts in sets.items():
        assert len(prompts) >= 600, name
        description = next(row.description for row in named_sets() if row.name == name)
        assert description.startswith(f"{len(prompts)} ")
        assert prompts.duplicates == 0


def test_categories(sets: dict[str, PromptSet]) -> None:
    categories = Counter(prompt.category for prompt in sets["harmful"])
    assert len(categories) >= 10
    assert min(categories.values()) >= 10
    assert all(prompt.category for prompts in sets.values() for prompt in prompts)


def test_ids_and_texts_are_unique_across_the_sets(sets: dict[str, PromptSet]) -> None:
    everything = [prompt for prompts in sets.values() for prompt in prompts]
    assert len({prompt.id for prompt in everything}) == len(everything)
    assert len({normalized(prompt.text) for prompt in everything}) == len(everything)
    for name, prompts in sets.items():
        assert all(prompt.id.startswith(f"{name}-") for prompt in prompts)


def test_twins_share_their_split_and_length(sets: dict[str, PromptSet]) -> None:
    for harmful, benign in zip(sets["harmful"], sets["benign"], strict=True):
        assert harmful.id.removeprefix("harmful") == benign.id.removeprefix("benign")
        assert harmful.split == benign.split, harmful.id
        assert abs(len(harmful.text.split()) - len(benign.text.split())) <= 3, harmful.id


def test_contrast_prompts_match_the_borderline_ones(sets: dict[str, PromptSet]) -> None:
    for borderline, contrast in zip(sets["borderline"], sets["contrast"], strict=True):
        assert borderline.id.removeprefix("borderline") == contrast.id.removeprefix("contrast")
        assert (borderline.split, borderline.category) == (contrast.split, contrast.category), contrast.id
        assert abs(len(borderline.text.split()) - len(contrast.text.split())) <= 3, contrast.id


@pytest.mark.parametrize("name", BUNDLED)
def test_splits_are_disjoint_and_complete(sets: dict[str, PromptSet], name: str) -> None:
    parts = [{prompt.id for prompt in sets[name].split(split)} for split in SPLITS]
    assert all(len(part) >= 150 for part in parts)
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == len(sets[name])


@pytest.mark.parametrize("name", BUNDLED)
def test_every_category_is_in_every_split(sets: dict[str, PromptSet], name: str) -> None:
    categories = {prompt.category for prompt in sets[name]}
    for split in SPLITS:
        assert {prompt.category for prompt in sets[name].split(split)} == categories


def test_no_two_prompts_are_alike_but_twins(sets: dict[str, PromptSet]) -> None:
    """Cosine of weighted character n-grams: 0.8 where one word is replaced, 0.5 where only the topic is shared."""
    everything = [prompt for prompts in sets.values() for prompt in prompts]
    twins = [prompt.id.replace("benign", "harmful").replace("contrast", "borderline") for prompt in everything]
    weights = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    vectors = weights.fit_transform(prompt.text for prompt in everything)
    alike = (vectors @ vectors.T).tocoo()
    found = [
        (everything[one].text, everything[other].text)
        for one, other, cosine in zip(alike.row, alike.col, alike.data, strict=True)
        if one < other and cosine > ALIKE and twins[one] != twins[other]
    ]
    assert found == []


def test_a_sample_of_a_split_has_all_categories_equally(sets: dict[str, PromptSet]) -> None:
    sample = sets["harmful"].split("train").take(32)
    assert set(Counter(prompt.category for prompt in sample).values()) == {2}
