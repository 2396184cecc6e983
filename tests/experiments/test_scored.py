"""Sets of the same size from every score, and how alike sets and rankings are."""

from pathlib import Path

import pytest

from builders.models import BENIGN, HARMFUL
from builders.quick import find, score_neurons
from safety_neurons.core.progress import Silence
from safety_neurons.experiments.scored import TrainingPrompts, jaccard, mean_spearman, of_size, score_all
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons import scores
from safety_neurons.settings import Settings


def test_sets_are_those_that_find_finds(model: ChatModel, tmp_path: Path) -> None:
    settings = Settings.model_validate({"find": {"positions": 3}, "batch_size": 4})
    training = TrainingPrompts(tuple(HARMFUL), tuple(BENIGN), settings, 3)
    for name in ("write-contrast", "gradient", "removal"):
        scored = score_neurons(model, HARMFUL, BENIGN, score=name, positions=3)
        kept = score_all(model, None, [name], training, tmp_path, Silence())[name]
        for percent in (5, 30):
            one, other = scored.top(percent), kept.whole.top(percent)
            for mine, theirs in zip(one.both, other.both, strict=True):
                assert mine.tolist() == theirs.tolist()


def test_sets_of_every_score_have_the_budgets_size(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    for name in scores.names():
        scored = score_neurons(model, harmful, benign, score=name, other=model, response_tokens=3)
        if name == "change":
            continue
        for percent in (5, 10, 20):
            wanted = percent / 100 * 144
            size = len(of_size(scored, percent))
            # A set difference grows by a few neurons of each of three layers at a time.
            assert abs(size - wanted) <= (1 if scored.score.contrastive else 9)


def test_jaccard_counts_shared_neurons(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    one, other = (find(model, harmful, benign, percent=20, score=name) for name in ("contrast", "magnitude"))
    sets = [
        {(hook_point, i) for hook_point, indices in enumerate(found.both) for i in indices.tolist()}
        for found in (one, other)
    ]
    assert jaccard(one, other) == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert jaccard(one, one) == 1
    assert 0 < jaccard(one, other) < 1


def test_a_ranking_agrees_with_itself(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    scored = score_neurons(model, harmful, benign)
    assert mean_spearman([scored, scored]) == pytest.approx(1)
    assert mean_spearman([scored]) is None


def test_halves_are_random_and_fixed() -> None:
    prompts = tuple(f"prompt {number}" for number in range(43))
    training = TrainingPrompts(prompts, prompts[:20], Settings(), 5)
    parts = training.parts()
    assert sorted(text for harmful, _ in parts for text in harmful) == sorted(prompts)
    assert sorted(text for _, benign in parts for text in benign) == sorted(prompts[:20])
    assert {len(harmful) for harmful, _ in parts} == {4, 5}
    halves = training.halves(len(parts))
    assert halves == training.halves(len(parts))
    assert all(len(set(half)) == 5 for half in halves)
    assert len({tuple(half) for half in halves}) > 1
    assert parts == TrainingPrompts(prompts, prompts[:20], Settings(), 2).parts()
    assert parts != TrainingPrompts(prompts, prompts[:20], Settings(seed=1), 5).parts()
